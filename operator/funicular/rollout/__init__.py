"""The ramp, as one pure function: `decide(observation) -> decision`. Called by the controller; knows no I/O and no clock."""
