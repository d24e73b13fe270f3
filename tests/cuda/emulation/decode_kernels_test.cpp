// The kernels' test, compiled for the emulation.
#include "decode_kernels_test.cu"
