{{/* funicular.metadata with further labels, by which a Prometheus or Grafana's sidecar finds the object. Call with (dict "of" the
     arguments of funicular.metadata "labels" labels). */}}
{{- define "funicular.monitoringMetadata" -}}
{{- $metadata := include "funicular.metadata" .of | fromYaml }}
{{- toYaml (merge (dict "labels" (merge (dict) (default (dict) .labels) $metadata.labels)) $metadata) }}
{{- end }}
