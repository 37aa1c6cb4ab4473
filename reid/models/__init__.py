"""Backbones, pooling, BNNeck and the model made of them."""
