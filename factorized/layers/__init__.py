"""The layers: one class for each kind of dense layer and each form of weight."""
