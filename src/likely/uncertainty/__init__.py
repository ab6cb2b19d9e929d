"""How sure the model is: estimators over scored or sampled answers."""
