/* Wine before 9 has no bcryptprimitives.dll, from which Rust's standard library takes its random numbers. This is one: it lies beside
   the programs under test, and nothing of it is shipped. */
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length) { return SystemFunction036(buffer, (ULONG)length); }
