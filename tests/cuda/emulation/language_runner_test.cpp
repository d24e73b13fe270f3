// The language model's sessions, with its runner emulated on the CPU.
#define EMULATED
#include "../language_runner_test.cpp"
