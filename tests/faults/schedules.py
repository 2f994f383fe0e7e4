"""Runs a state machine of faults over as many schedules as THRESHER_SCHEDULES says, 1,000 by default."""

import os

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_schedules(machine: type[RuleBasedStateMachine], *, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("THRESHER_SCHEDULES", "1000")),
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
