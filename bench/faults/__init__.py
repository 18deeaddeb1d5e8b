"""The fault matrix: real servers are killed, halted, cut off and starved, and must lose nothing that they acknowledged."""
