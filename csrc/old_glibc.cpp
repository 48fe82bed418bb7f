// Lets a library that is built with a new glibc and a new libstdc++ be loaded with those of 2018, glibc 2.28 and GCC 8,
// which PyTorch's own wheels ask for (manylinux_2_28). What is newer than that is defined here, for this library alone:
// csrc/exports.map keeps its names local.
#include <new>
#include <sstream>

#if defined(__GLIBC__) && defined(__GLIBCXX__) && (defined(__x86_64__) || defined(__aarch64__))

#ifdef __x86_64__
#define NORMKIT_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define NORMKIT_FIRST_GLIBC "GLIBC_2.17"
#endif

extern "C" {
// The one of glibc 2.29 has the same values; it differs in how it reports errors, which nobody reads here.
double normkit_first_exp(double);
__asm__(".symver normkit_first_exp,exp@" NORMKIT_FIRST_GLIBC);
double normkit_exp(double) __asm__("exp");
double normkit_exp(double x) { return normkit_first_exp(x); }

// glibc 2.32 tells libstdc++ whether there is one thread only, so that references can be counted without atomics.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;
}

// libstdc++ of GCC 9 and 11.
namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
template class basic_stringbuf<char>;
template class basic_ostringstream<char>;
template class basic_stringstream<char>;
}  // namespace std

#endif
