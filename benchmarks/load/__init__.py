"""Throughput, and latency with a queue: MLPerf's Offline and Server scenarios in small."""
