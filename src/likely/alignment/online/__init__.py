"""Preference optimisation on the model's own samples: games and equilibria, mixture decoding, Nash-MD, training."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.online.mixture import GeometricMixture as GeometricMixture
    from likely.alignment.online.policy_gradient import nash_md_loss as nash_md_loss
    from likely.alignment.online.policy_gradient import policy_gradient_loss as policy_gradient_loss
    from likely.alignment.online.tabular import best_response as best_response
    from likely.alignment.online.tabular import bradley_terry_fit as bradley_terry_fit
    from likely.alignment.online.tabular import descend as descend
    from likely.alignment.online.tabular import dpo_gradient as dpo_gradient
    from likely.alignment.online.tabular import exploitability as exploitability
    from likely.alignment.online.tabular import ipo_gradient as ipo_gradient
    from likely.alignment.online.tabular import mirror_descent_fixed_point as mirror_descent_fixed_point
    from likely.alignment.online.tabular import nash as nash
    from likely.alignment.online.tabular import nash_md_gradient as nash_md_gradient
    from likely.alignment.online.tabular import reward_optimum as reward_optimum
    from likely.alignment.online.training import OnlinePreferences as OnlinePreferences
    from likely.alignment.online.training import OnlineSettings as OnlineSettings
    from likely.alignment.online.training import ReferenceRuntime as ReferenceRuntime
    from likely.alignment.online.training import train_online as train_online

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
