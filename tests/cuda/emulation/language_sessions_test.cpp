// The language model's sessions, with its runner compiled for the emulation.
#include "cuda/language_runner.cu"
#include "cuda/token_sampling.cu"
//
#include "language_runner_test.cpp"
