"""The process and machine that a program runs on: mesh, values saved for the backward pass, memory, files."""
