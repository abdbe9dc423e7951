"""Max pooling with the activation behind it, and the linear map back through its winners."""
