"""Pretrained weights: folders and hub ids, devices, and a torchvision that imports."""
