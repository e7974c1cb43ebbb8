"""The native engine: recurrent layers on a CPU, in C++."""
