"""Finds devices and measures them: NVML, AMD SMI, described GPUs, host RAM.

It returns inventories and faults, and must not know models, engines or the scheduler.
"""
