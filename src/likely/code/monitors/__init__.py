"""Monitors: properties of code that hold while it is written, as a constraint on tokens."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.code.monitors.arity import ArityMonitor as ArityMonitor
    from likely.code.monitors.monitor import Monitor as Monitor
    from likely.code.monitors.monitor import MonitorConstraint as MonitorConstraint
    from likely.code.monitors.penalty import MonitorPenalty as MonitorPenalty
    from likely.code.monitors.triggers import DereferenceMonitor as DereferenceMonitor
    from likely.code.monitors.triggers import EnumCaseMonitor as EnumCaseMonitor
    from likely.code.monitors.triggers import InstantiationMonitor as InstantiationMonitor
    from likely.code.monitors.typestate import TypestateAutomaton as TypestateAutomaton
    from likely.code.monitors.typestate import TypestateMonitor as TypestateMonitor

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
