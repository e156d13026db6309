"""The configuration: `cotenant.yaml`, the environment, and the model files of a folder, watched."""
