"""How good a model is: metrics per item, judges, fixed protocols, and the report a person reads."""
