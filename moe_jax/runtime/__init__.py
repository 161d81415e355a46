"""The process and machine of a program: mesh, files, memory, remat, and declared parameters."""
