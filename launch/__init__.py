"""Programs that start runs elsewhere; `cloud` is what launch/tpu.py is made of."""
