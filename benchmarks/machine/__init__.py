"""What a machine is and does, as far as it changes a latency: read between timed windows, never within one."""
