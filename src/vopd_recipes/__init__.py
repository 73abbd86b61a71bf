"""vOPD recipes: on-policy distillation with a control-variate baseline."""
