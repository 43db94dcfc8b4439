{{- define "funicular.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* 40 characters at most, so that a component's name may follow. */}}
{{- define "funicular.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := include "funicular.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "funicular.operatorName" -}}
{{- printf "%s-operator" (include "funicular.fullname" .) }}
{{- end }}

{{- define "funicular.gatewayName" -}}
{{- default (printf "%s-gateway" (include "funicular.fullname" .)) .Values.gateway.name }}
{{- end }}

{{/* For objects of the whole cluster: two releases must not meet. */}}
{{- define "funicular.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "funicular.fullname" .) }}
{{- end }}

{{- define "funicular.operatorAccount" -}}
{{- default (ternary (include "funicular.operatorName" .) "default" .Values.operator.serviceAccount.create) .Values.operator.serviceAccount.name }}
{{- end }}

{{- define "funicular.gatewayAccount" -}}
{{- default (ternary (include "funicular.gatewayName" .) "default" .Values.gateway.serviceAccount.create) .Values.gateway.serviceAccount.name }}
{{- end }}

{{- define "funicular.operatorNamespace" -}}
{{- default .Release.Namespace .Values.gateway.operatorNamespace }}
{{- end }}

{{- define "funicular.idKeySecret" -}}
{{- default (printf "%s-id-key" (include "funicular.gatewayName" .)) .Values.gateway.idKey.secretName }}
{{- end }}

{{/* What never changes in a Deployment's life. Call with (list $ "component"). */}}
{{- define "funicular.selectorLabels" -}}
app.kubernetes.io/name: {{ include "funicular.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of an object. Call with (list $ "component"). The chart's version is never in a pod's labels: it would restart it. */}}
{{- define "funicular.labels" -}}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
app.kubernetes.io/part-of: funicular
{{ include "funicular.selectorLabels" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* name, namespace, labels and annotations of an object. Call with (dict "root" $ "component" c "name" n), optionally
     "namespace" (empty: an object of the cluster), "labels", "annotations". */}}
{{- define "funicular.metadata" -}}
name: {{ .name | quote }}
{{- with (ternary .namespace .root.Release.Namespace (hasKey . "namespace")) }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "funicular.labels" (list .root .component) | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mustMerge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "funicular.reference" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "funicular.image" -}}
{{- $image := .Values.image }}
{{- include "funicular.reference" (dict "repository" $image.repository "digest" $image.digest "tag" (default .Chart.AppVersion $image.tag)) }}
{{- end }}

{{- define "funicular.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "funicular.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What a service account's token is usually mounted by, so that only the containers that need it have it. */}}
{{- define "funicular.apiAccessVolume" -}}
- name: api-access
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]}
{{- end }}

{{- define "funicular.apiAccessMount" -}}
- {name: api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* Call with (list $ "component" constraints). */}}
{{- define "funicular.spread" -}}
{{- $selector := dict "matchLabels" (include "funicular.selectorLabels" . | fromYaml) }}
{{- $constraints := index . 2 }}
{{- if not $constraints }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
{{- $constraints = append $constraints (dict "topologyKey" . "maxSkew" 1 "whenUnsatisfiable" "ScheduleAnyway" "matchLabelKeys" (list "pod-template-hash")) }}
{{- end }}
{{- end }}
{{- range $constraints }}
- {{ toYaml (merge (dict) . (dict "labelSelector" $selector)) | nindent 2 | trim }}
{{- end }}
{{- end }}

{{/* Namespaces as JSON lists (fromJsonArray). ["*"]: all. */}}
{{- define "funicular.operatorNamespaces" -}}
{{- if .Values.operator.namespaces }}
{{- concat (list .Release.Namespace) .Values.operator.namespaces .Values.operator.gatewayNamespaces | uniq | toJson }}
{{- else }}["*"]{{ end }}
{{- end }}

{{- define "funicular.policyNamespaces" -}}
{{- if has "*" .Values.gateway.policyNamespaces }}["*"]
{{- else }}
{{- concat (list .Release.Namespace) .Values.gateway.policyNamespaces | uniq | toJson }}
{{- end }}
{{- end }}

{{/* Where policies may be whose Secrets the operator looks at. A wildcard of the gateway asks for all of them. */}}
{{- define "funicular.secretNamespaces" -}}
{{- $all := concat (list .Release.Namespace) .Values.operator.namespaces .Values.operator.secretNamespaces (ternary .Values.gateway.policyNamespaces list .Values.gateway.enabled) | uniq }}
{{- if and (has "*" .Values.gateway.policyNamespaces) .Values.operator.namespaces (not (has "*" .Values.operator.secretNamespaces)) }}
{{- $all = without $all "*" }}
{{- end }}
{{- if has "*" $all }}["*"]{{ else }}{{ $all | toJson }}{{ end }}
{{- end }}

{{- define "funicular.scrapeAnnotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ . | quote }}
prometheus.io/path: /metrics
{{- end }}

{{/* Not empty where Helm sees the cluster, empty in `helm template`, in a dry run of the client, and in Argo CD. */}}
{{- define "funicular.seesCluster" -}}
{{- if or (lookup "v1" "Namespace" "" .Release.Namespace) (lookup "v1" "Namespace" "" "default") }}yes{{ end }}
{{- end }}
