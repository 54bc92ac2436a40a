"""A real HTTP server that stands for a provider with limits (`headway simulate`).

It counts with plain integers and lists of time stamps, in its own way, so that it can be trusted
to say whether what the library does is right.
"""

from headway.simulate.behaviour import Behaviour
from headway.simulate.failures import DROP, Failure
from headway.simulate.latency import Latency
from headway.simulate.process import SimulatorProcess
from headway.simulate.rules import Rule
from headway.simulate.server import SimulatedProvider
from headway.simulate.timetable import Change

__all__ = [
    "DROP",
    "Behaviour",
    "Change",
    "Failure",
    "Latency",
    "Rule",
    "SimulatedProvider",
    "SimulatorProcess",
]
