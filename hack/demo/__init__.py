"""The demo: the ramp's two stories on real parts, live, with a report at the end. `python -m hack.demo`."""
