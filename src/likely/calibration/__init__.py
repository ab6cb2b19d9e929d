"""Making "90 % sure" mean 90 %: metrics, recalibrators, conformal sets, thresholds with a guarantee."""
