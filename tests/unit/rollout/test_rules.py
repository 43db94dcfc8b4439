"""The rules of the ramp that hold always, one class a rule. Each test fails when its rule is broken."""

from __future__ import annotations

import ast
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import funicular.rollout
from funicular.api.revision import baseline_route, revision_of
from funicular.api.verbs import Request, Verb
from funicular.rollout.actions import DropFinalizer, RecordRevision, RestoreSpec, WriteStatus
from funicular.rollout.decide import decide
from funicular.rollout.observation import Alarm, GatewayFacts
from funicular.rollout.transitions import TRANSITIONS, Signal, State
from funicular.slo.model import Outcome, Verdict
from tests.builders import (
    ERRORS,
    NOW,
    STEPS,
    Ramp,
    evidence,
    make_measurements,
    make_metadata,
    make_observation,
    make_spec,
)

BURN = Verdict("errors", Outcome.FAIL, "FastBurn", "half of the treated requests fail")


def verb(ramp: Ramp, name: Verb, revision: str | None = None, ident: str = "1") -> Request:
    return Request(name, revision if revision is not None else revision_of(ramp.spec), ident, "ada")


def alarm(ramp: Ramp) -> Alarm:
    assert ramp.status.traffic is not None
    return Alarm(ramp.status.traffic.version, ramp.status.traffic.revision, ramp.now, BURN)


class TestRule1OnePureDecision:
    @pytest.mark.parametrize("state", State)
    @pytest.mark.parametrize("signal", Signal)
    def test_every_cell_is_decided(self, state: State, signal: Signal) -> None:
        assert (state, signal) in TRANSITIONS

    def test_the_same_observation_gives_the_same_decision(self) -> None:
        ramp = Ramp().to_step(1)
        seen = make_observation(ramp.spec, ramp.status, now=ramp.now)
        assert decide(seen) == decide(seen)

    def test_the_pure_packages_import_no_io_and_no_clock(self) -> None:
        forbidden = {"kopf", "kubernetes", "httpx", "aiohttp", "asyncio", "time", "random", "prometheus_api_client"}
        for path in Path(funicular.rollout.__path__[0]).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
                assert not {n.split(".")[0] for n in names} & forbidden, path


class TestRule2NoPromotionWithoutEvidence:
    def test_without_any_look_at_prometheus_the_step_holds_for_ever(self) -> None:
        ramp = Ramp().to_step(0)
        for _ in range(100):
            ramp.tick(3600)
        assert (ramp.status.step and ramp.status.step.index, ramp.share) == (0, 100)

    @pytest.mark.parametrize(
        "reason", ["NoData", "Stale", "MetricsUnavailable", "InvalidQuery", "NotANumber", "SeveralSeries"]
    )
    def test_an_slo_that_cannot_be_measured_holds(self, reason: str) -> None:
        ramp = Ramp().to_step(0)
        for _ in range(20):
            look = make_measurements(ramp.status, ramp.now + timedelta(seconds=5), {"errors": reason})
            ramp.tick(5, measurements=look)
        assert ramp.share == 100
        assert ramp.status.verdicts[0].reason == reason

    def test_too_few_samples_hold(self) -> None:
        spec = make_spec(rollout={"steps": [{"share": 1, "minSamples": 10_000}, {"share": 100}]})
        ramp = Ramp(spec).to_step(0)
        for _ in range(20):
            ramp.measure(n=640)
        assert ramp.share == 100
        assert "640 of 10000 samples" in ramp.status.message or "10000" in ramp.status.message

    def test_the_steps_own_samples_are_waited_for_though_the_slo_is_content_with_fewer(self) -> None:
        slo = {**ERRORS, "minSamples": 100}
        ramp = Ramp(
            make_spec(slos=[slo], rollout={"steps": [{"share": 1, "minSamples": 10_000}, {"share": 100}]})
        ).to_step(0)
        for _ in range(3):
            ramp.measure()
        assert ramp.status.verdicts[0].outcome == "Pass"
        assert ramp.share == 100

    def test_one_enforced_slo_that_has_not_passed_holds_though_another_has(self) -> None:
        spec = make_spec(slos=[ERRORS, {"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.02}])
        ramp = Ramp(spec).to_step(0)
        for _ in range(20):
            look = make_measurements(
                ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence(), "thumbs": "NoData"}
            )
            ramp.tick(5, measurements=look)
        assert ramp.share == 100

    def test_an_observed_slo_does_not_gate(self) -> None:
        spec = make_spec(
            slos=[ERRORS, {"name": "thumbs", "indicator": "ThumbsUpRate", "allowedDecrease": 0.02, "mode": "Observe"}]
        )
        ramp = Ramp(spec).to_step(0)
        look = make_measurements(
            ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence(), "thumbs": "NoData"}, n=640_000
        )
        ramp.tick(5, measurements=look)
        assert ramp.share == 1000

    def test_without_an_enforced_slo_nothing_is_promoted(self) -> None:
        ramp = Ramp(make_spec(slos=[{**ERRORS, "mode": "Observe"}])).to_step(0)
        for _ in range(20):
            ramp.measure()
        assert ramp.share == 100

    def test_an_old_look_does_not_promote(self) -> None:
        spec = make_spec(rollout={"steps": [{"share": 1, "minDuration": "1h", "minSamples": 100}, {"share": 100}]})
        ramp = Ramp(spec).to_step(0)
        look = make_measurements(ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence()}, n=640_000)
        ramp.tick(5, measurements=look)
        assert ramp.status.verdicts[0].outcome == "Pass"
        ramp.tick(3700, measurements=look)
        assert ramp.share == 100

    def test_evidence_about_the_baseline_alone_does_not_promote(self) -> None:
        ramp = Ramp().to_step(0)
        look = make_measurements(
            ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence()}, n=640_000, exercised=0.3
        )
        ramp.tick(5, measurements=look)
        assert ramp.share == 100

    def test_after_max_duration_hold_stays_and_says_so(self) -> None:
        spec = make_spec(rollout={"steps": [{"share": 1, "maxDuration": "1h"}, {"share": 100}]})
        ramp = Ramp(spec).to_step(0)
        ramp.tick(7200)
        assert ramp.share == 100

    def test_after_max_duration_revert_reverts(self) -> None:
        spec = make_spec(
            rollout={"steps": [{"share": 1, "maxDuration": "1h"}, {"share": 100}], "onInconclusive": "Revert"}
        )
        ramp = Ramp(spec).to_step(0)
        ramp.tick(3000)
        assert ramp.share == 100
        ramp.tick(700)
        assert (ramp.share, ramp.status.candidate) == (0, None)

    def test_a_person_goes_on_without_evidence_bound_to_the_revision_and_recorded(self) -> None:
        ramp = Ramp().to_step(0)
        ramp.tick(request=verb(ramp, Verb.PROMOTE, "another"))
        assert ramp.share == 100
        assert ramp.status.last_verb
        assert ramp.status.last_verb.result.startswith("refused")
        ramp.tick(request=verb(ramp, Verb.PROMOTE, ident="2"))
        assert ramp.share == 1000
        assert (ramp.status.history[-1].event, ramp.status.history[-1].by) == ("PromotedByHand", "ada")


class TestRule3AnOutageIsNotARegression:
    def test_the_share_freezes_a_condition_says_so_and_the_ramp_goes_on_by_itself(self) -> None:
        ramp = Ramp().to_step(1)
        for _ in range(50):
            look = make_measurements(
                ramp.status,
                ramp.now + timedelta(seconds=5),
                {"errors": "MetricsUnavailable"},
                error="MetricsUnavailable",
                message="connection refused",
            )
            ramp.tick(5, measurements=look)
        assert (ramp.share, ramp.status.rejected) == (1000, ())
        condition = ramp.status.condition("MetricsAvailable")
        assert condition
        assert (condition.status, condition.reason) == ("False", "MetricsUnavailable")
        ramp.measure()
        assert ramp.share == 5000

    def test_the_slos_that_answer_still_count(self) -> None:
        spec = make_spec(slos=[ERRORS, {"name": "p95", "indicator": "LatencyP95", "bound": "2s"}])
        ramp = Ramp(spec).to_step(1)
        for _ in range(12):
            if ramp.status.candidate is None:
                break
            look = make_measurements(
                ramp.status,
                ramp.now + timedelta(seconds=5),
                {"errors": evidence(treatment=0.4), "p95": "MetricsUnavailable"},
            )
            ramp.tick(5, measurements=look)
        assert ramp.share == 0
        assert ramp.status.rejected[0].reason == "Regressed"


class TestRule4VerdictsAreStatistics:
    def test_a_rate_over_the_bound_on_few_samples_does_not_revert(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.measure(treatment=0.08, n=64)
        assert ramp.share == 1000

    def test_a_clear_regression_reverts(self) -> None:
        ramp = Ramp().to_step(1)
        for _ in range(3):
            if ramp.status.candidate is not None:
                ramp.measure(treatment=0.3, n=20_000)
        assert ramp.share == 0

    def test_a_fail_is_not_forgotten_by_a_later_look(self) -> None:
        ramp = Ramp(make_spec(slos=[ERRORS, {**ERRORS, "name": "seen", "mode": "Observe"}])).to_step(1)
        look = make_measurements(
            ramp.status, ramp.now + timedelta(seconds=5), {"errors": "NoData", "seen": evidence(0.4, n=20_000)}
        )
        ramp.tick(5, measurements=look)
        assert {v.slo: v.outcome for v in ramp.status.verdicts}["seen"] == "Fail"
        look = make_measurements(
            ramp.status, ramp.now + timedelta(seconds=5), {"errors": "NoData", "seen": evidence(0.0, n=60_000)}
        )
        ramp.tick(5, measurements=look)
        assert {v.slo: v.outcome for v in ramp.status.verdicts}["seen"] == "Fail"

    def test_the_fast_burn_guard_reverts_at_once(self) -> None:
        ramp = Ramp().to_step(0)
        ramp.tick(0.01, alarm=alarm(ramp))
        assert (ramp.share, ramp.status.candidate) == (0, None)

    def test_an_alarm_of_another_revision_is_ignored(self) -> None:
        ramp = Ramp().to_step(0)
        ramp.tick(0.01, alarm=replace(alarm(ramp), revision="other"))
        assert ramp.share == 100


class TestRule5TheClockStartsWithTheShareInEffect:
    def test_no_clock_before_all_ready_pods_confirmed(self) -> None:
        ramp = Ramp()
        ramp.is_acked = False
        ramp.tick()
        ramp.tick(3600)
        assert ramp.status.step
        assert ramp.status.step.started_at is None
        ramp.is_acked = True
        ramp.tick()
        assert ramp.status.step.started_at is None or ramp.status.step.started_at == ramp.now
        assert ramp.status.step
        assert ramp.status.step.started_at == ramp.now

    def test_evidence_from_before_the_share_took_effect_does_not_count(self) -> None:
        ramp = Ramp().to_step(0)
        look = make_measurements(ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence()}, n=640_000)
        ramp.tick(5, measurements=replace(look, started_at=look.started_at - timedelta(seconds=60)))
        assert ramp.share == 100

    def test_min_duration_counts_from_there(self) -> None:
        spec = make_spec(rollout={"steps": [{"share": 1, "minDuration": "1h", "minSamples": 100}, {"share": 100}]})
        ramp = Ramp(spec)
        ramp.is_acked = False
        ramp.tick()
        ramp.tick(3600)
        ramp.is_acked = True
        ramp.tick()
        assert ramp.status.step
        assert ramp.status.step.min_until == ramp.now + timedelta(hours=1)

    def test_the_last_promotion_waits_for_the_assignments_min_duration(self) -> None:
        ramp = Ramp(make_spec(assignment={"minDuration": "168h"})).to_step(3)
        ramp.measure()
        assert ramp.status.phase == "Ramping"
        ramp.now += timedelta(hours=168)
        ramp.measure()
        assert ramp.status.phase == "Promoted"

    def test_the_bake_holds_the_last_step(self) -> None:
        spec = make_spec(rollout={"steps": [*STEPS[:3], {"share": 100, "minSamples": 100, "bake": "1h"}]})
        ramp = Ramp(spec).to_step(3)
        ramp.measure()
        assert ramp.status.phase == "Ramping"
        ramp.now += timedelta(hours=1)
        ramp.measure()
        assert ramp.status.phase == "Promoted"


class TestRule6ObservedShareMustMatch:
    def test_a_sample_ratio_mismatch_reverts(self) -> None:
        from funicular.slo.model import Arm
        from tests.builders import counts

        ramp = Ramp().to_step(1)
        for _ in range(3):
            if ramp.status.candidate is None:
                break
            look = make_measurements(ramp.status, ramp.now + timedelta(seconds=5), {"errors": "NoData"})
            outcomes = {
                **look.outcomes,
                Arm.TREATMENT: counts(64_000),
                Arm.CONTROL: counts(64_000),
            }  # half instead of a tenth
            ramp.tick(5, measurements=replace(look, outcomes=outcomes))
        assert ramp.share == 0
        assert "sample-ratio" in ramp.status.rejected[0].message


class TestRule7TheOrderOfSignals:
    def test_an_abort_outranks_everything(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.tick(0.1, alarm=alarm(ramp), request=verb(ramp, Verb.ABORT))
        assert ramp.status.rejected[0].reason == "Aborted"

    def test_a_revert_outranks_a_promotion(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.tick(0.1, alarm=alarm(ramp), request=verb(ramp, Verb.PROMOTE))
        assert (ramp.share, ramp.status.rejected[0].reason) == (0, "Regressed")

    def test_a_revert_outranks_a_pause(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.tick(request=verb(ramp, Verb.PAUSE))
        assert (ramp.share, ramp.status.phase) == (1000, "Paused")
        ramp.tick(0.1, alarm=alarm(ramp))
        assert ramp.share == 0

    def test_a_paused_ramp_does_not_move_and_resumes(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.tick(request=verb(ramp, Verb.PAUSE))
        ramp.measure()
        assert ramp.share == 1000
        ramp.tick(request=verb(ramp, Verb.RESUME, ident="2"))
        ramp.measure()
        assert ramp.share == 5000

    def test_an_abort_is_never_overtaken(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.tick(request=verb(ramp, Verb.ABORT))
        for name in (Verb.PROMOTE, Verb.RESUME, Verb.APPROVE):
            ramp.tick(request=verb(ramp, name, ident=name))
            ramp.tick()
        assert (ramp.share, ramp.status.candidate) == (0, None)

    def test_an_approval_is_waited_for_at_its_step_only(self) -> None:
        spec = make_spec(rollout={"steps": [STEPS[0], {**STEPS[1], "approval": "Required"}, STEPS[3]]})
        ramp = Ramp(spec).to_step(1)
        ramp.measure()
        assert (ramp.share, ramp.status.phase) == (1000, "AwaitingApproval")
        ramp.tick(request=verb(ramp, Verb.APPROVE))
        ramp.measure()
        assert ramp.share == 10_000


class TestRule8EveryInstantIsCrashSafe:
    def test_a_status_that_was_not_written_is_decided_again(self) -> None:
        ramp = Ramp().to_step(1)
        before, look = (
            ramp.status,
            make_measurements(ramp.status, ramp.now + timedelta(seconds=5), {"errors": evidence()}, n=640_000),
        )
        ramp.tick(5, measurements=look)
        lost, ramp.status = ramp.status, before
        ramp.tick(0, measurements=look)
        assert ramp.status == lost

    def test_a_repeated_tick_changes_nothing(self) -> None:
        ramp = Ramp().to_step(2)
        before = ramp.status
        for _ in range(5):
            ramp.tick(0)
        assert ramp.status.traffic == before.traffic
        assert ramp.status.step == before.step

    def test_a_restart_keeps_deadlines_and_the_tests_memory(self) -> None:
        spec = make_spec(rollout={"steps": [{"share": 1, "minDuration": "1h", "minSamples": 10_000}, {"share": 100}]})
        ramp = Ramp(spec).to_step(0)
        ramp.measure(n=1000)
        looks = ramp.status.verdicts[0].memory
        restarted = Ramp(spec)
        restarted.status, restarted.now = ramp.status, ramp.now
        restarted.tick(600)
        assert restarted.status.step
        assert ramp.status.step
        assert restarted.status.step.min_until == ramp.status.step.min_until
        assert restarted.status.verdicts[0].memory == looks

    def test_a_late_tick_takes_one_step_not_several(self) -> None:
        ramp = Ramp().to_step(0)
        ramp.measure(seconds=100_000)
        assert ramp.share == 1000

    def test_history_is_recorded_before_a_status_names_it(self) -> None:
        ramp = Ramp().to_step(3)
        decision = ramp.measure()
        kinds = [type(a) for a in decision.actions]
        assert ramp.status.phase == "Promoted"
        assert kinds.index(RecordRevision) < kinds.index(WriteStatus)


class TestRule9ARejectedRevisionStaysRejected:
    def reverted(self) -> Ramp:
        ramp = Ramp().to_step(1)
        ramp.tick(0.1, alarm=alarm(ramp))
        ramp.tick()
        return ramp

    def test_the_same_spec_again_ramps_nothing(self) -> None:
        ramp = self.reverted()
        for _ in range(50):
            ramp.tick(60)
        assert (ramp.share, ramp.status.candidate, ramp.status.phase) == (0, None, "Degraded")

    def test_a_change_that_routes_nothing_else_is_no_new_revision(self) -> None:
        ramp = self.reverted()
        ramp.spec = make_spec(slos=[{**ERRORS, "max": 0.2}])
        ramp.tick()
        assert (ramp.share, ramp.status.candidate) == (0, None)

    def test_a_new_spec_ramps(self) -> None:
        ramp = self.reverted()
        ramp.spec = make_spec("qwen-small-2")
        ramp.tick()
        ramp.tick()
        assert (ramp.share, ramp.status.candidate and ramp.status.candidate.revision) == (100, revision_of(ramp.spec))

    def test_a_retry_bound_to_the_hash_ramps_another_does_not(self) -> None:
        ramp = self.reverted()
        ramp.tick(request=verb(ramp, Verb.RETRY, "another"))
        ramp.tick()
        assert ramp.share == 0
        ramp.tick(request=verb(ramp, Verb.RETRY, ident="2"))
        ramp.tick()
        assert ramp.share == 100


class TestRule10RevertTheResource:
    def second(self, **facts: object) -> Ramp:
        ramp = Ramp(**facts).to_promoted()
        ramp.spec = make_spec("qwen-small-bad")
        return ramp.to_step(1)

    def test_traffic_goes_to_stable_not_to_the_baseline(self) -> None:
        ramp = self.second()
        stable = revision_of(make_spec())
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.revision == stable
        ramp.tick(0.1, alarm=alarm(ramp))
        assert ramp.status.traffic.stable.revision == stable
        assert (ramp.share, ramp.status.traffic.candidate) == (0, None)

    def test_the_verdict_that_reverted_a_candidate_says_nothing_of_the_stable_revision(self) -> None:
        ramp = self.second()
        stable = revision_of(make_spec())
        ramp.measure(treatment=0.4)
        assert (ramp.share, ramp.status.reverted_at is not None) == (0, True)
        ramp.spec = make_spec()  # as the API server has it now
        for _ in range(4):
            ramp.tick()
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.revision == stable
        assert [r.revision for r in ramp.status.rejected] == [revision_of(make_spec("qwen-small-bad"))]

    def test_the_last_good_spec_is_written_back_after_the_traffic(self) -> None:
        ramp = self.second()
        decision = ramp.tick(0.1, alarm=alarm(ramp))
        kinds = [type(a) for a in decision.actions]
        assert kinds.index(WriteStatus) < kinds.index(RestoreSpec)
        restore = next(a for a in decision.actions if isinstance(a, RestoreSpec))
        assert restore.controller_revision == (ramp.status.stable and ramp.status.stable.controller_revision)
        ramp.spec = make_spec()  # as the API server has it now
        ramp.tick()
        ramp.tick()
        assert (ramp.status.phase, ramp.status.spec_to_revert) == ("Reverted", None)

    def test_the_write_is_repeated_until_it_is_seen(self) -> None:
        ramp = self.second()
        ramp.tick(0.1, alarm=alarm(ramp))
        assert any(isinstance(a, RestoreSpec) for a in ramp.tick().actions)

    def test_a_good_spec_that_somebody_deleted_keeps_no_traffic_back_and_is_told_of(self) -> None:
        ramp = self.second()
        stable = ramp.status.stable
        ramp.tick(0.1, alarm=alarm(ramp))
        assert (ramp.share, ramp.status.spec_to_revert is not None) == (0, True)
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.single == "mini", "from status.traffic, which holds it in full"
        decision = ramp.tick(spec_is_lost=True)
        assert not any(isinstance(a, RestoreSpec) for a in decision.actions)
        assert "SpecLost" in ramp.events
        ramp.tick()
        assert (ramp.share, ramp.status.phase, ramp.status.stable) == (0, "Degraded", stable)
        stalled = ramp.status.condition("Stalled")
        assert stalled
        assert stable
        assert f"ControllerRevision {stable.controller_revision} is gone: apply it again" in stalled.message
        assert not any(isinstance(a, RestoreSpec) for a in ramp.tick().actions)
        ramp.spec = make_spec()
        for _ in range(3):
            ramp.tick()
        assert ramp.status.phase == "Reverted", "the good spec, applied again, is what serves"

    def test_a_newer_wish_of_a_person_is_left_alone(self) -> None:
        ramp = self.second()
        ramp.tick(0.1, alarm=alarm(ramp))
        ramp.spec = make_spec("qwen-small-3")
        assert not any(isinstance(a, RestoreSpec) for a in ramp.tick().actions)
        ramp.tick()
        ramp.tick()
        assert ramp.share == 100

    def test_a_spec_managed_from_git_is_held(self) -> None:
        ramp = self.second(managed_by="Argo CD application shop")
        decision = ramp.tick(0.1, alarm=alarm(ramp))
        assert not any(isinstance(a, RestoreSpec) for a in decision.actions)
        ramp.tick()
        assert (ramp.share, ramp.status.phase) == (0, "Degraded")

    def test_a_first_revision_has_no_spec_to_go_back_to(self) -> None:
        ramp = Ramp().to_step(1)
        decision = ramp.tick(0.1, alarm=alarm(ramp))
        assert not any(isinstance(a, RestoreSpec) for a in decision.actions)
        ramp.tick()
        assert (ramp.share, ramp.status.phase) == (0, "Degraded")

    def test_a_drift_after_promotion_goes_to_the_baseline(self) -> None:
        ramp = Ramp().to_promoted()
        for _ in range(3):
            if not ramp.status.rejected:
                ramp.measure(treatment=0.4, control=0.0, n=20_000)
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.is_baseline_only
        assert ramp.status.rejected[0].reason == "Drifted"

    def test_an_abort_after_promotion_goes_to_the_baseline_and_leaves_the_spec(self) -> None:
        ramp = Ramp().to_promoted()
        promoted = ramp.status.revision
        ramp.tick(request=verb(ramp, Verb.ABORT))
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.is_baseline_only
        assert [(it.revision, it.reason) for it in ramp.status.rejected] == [(promoted, "Aborted")]
        assert ramp.status.spec_to_revert is None
        ramp.tick()
        ramp.tick()
        assert ramp.status.candidate is None, "what was aborted ramps again"

    def test_the_revision_ends_a_supersession_without_being_rejected(self) -> None:
        ramp = Ramp().to_step(1)
        ramp.spec = make_spec("qwen-small-2")
        ramp.tick()
        assert (ramp.share, ramp.status.candidate, ramp.status.rejected) == (0, None, ())
        ramp.tick()
        ramp.tick()
        assert ramp.share == 100


class TestRule11DeletingLeavesADefinedState:
    def test_everything_goes_to_the_baseline_and_the_object_stays_until_the_pods_confirm(self) -> None:
        ramp = Ramp().to_step(2)
        ramp.facts["metadata"] = make_metadata(deleted=NOW)
        ramp.is_acked = False
        ramp.tick()
        assert ramp.status.traffic
        assert ramp.status.traffic.stable.is_baseline_only
        assert ramp.status.traffic.candidate is None
        assert not any(isinstance(a, DropFinalizer) for a in ramp.tick(3600).actions)
        ramp.is_acked = True
        assert any(isinstance(a, DropFinalizer) for a in ramp.tick().actions)

    def test_without_any_gateway_there_is_nobody_to_wait_for(self) -> None:
        ramp = Ramp().to_step(0)
        ramp.facts["metadata"] = make_metadata(deleted=NOW)
        ramp.tick()
        none = GatewayFacts(ready=0)
        seen = make_observation(ramp.spec, ramp.status, metadata=make_metadata(deleted=NOW), gateways=none)
        assert any(isinstance(a, DropFinalizer) for a in decide(seen).actions)


def test_the_first_stable_revision_is_the_baseline() -> None:
    ramp = Ramp()
    ramp.tick()
    assert ramp.status.traffic
    assert ramp.status.traffic.stable == baseline_route(ramp.spec)
