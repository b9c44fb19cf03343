"""Seeing runs: plans, what ran, diffs, and the page of a run."""

from __future__ import annotations

from flowdeco.show.plan import Change, Diff, Plan, Ran, plan, ran

__all__ = ["Change", "Diff", "Plan", "Ran", "plan", "ran"]
