"""What the experiments share when they run: devices, images, the training loop, checkpoints, records, scripts."""
