"""The networks of the model compression study."""
