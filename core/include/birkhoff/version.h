/* The version of the library, and the mark of the functions that it exports.
 *
 * A release is MAJOR.MINOR.PATCH. doc/abi.md says which programs go on working with a newer
 * library, and how the shared library's own number (libbirkhoff.so.N) follows. */
#ifndef BIRKHOFF_VERSION_H
#define BIRKHOFF_VERSION_H

#ifdef __cplusplus
extern "C" {
#endif

/* The functions and tables that a program may use. Everything else is hidden in the shared
 * library. */
#ifndef BK_API
#if defined(__GNUC__)
#define BK_API __attribute__((visibility("default")))
#else
#define BK_API
#endif
#endif

/* The version of the headers that a program is compiled with. */
#define BK_VERSION_MAJOR 0
#define BK_VERSION_MINOR 1
#define BK_VERSION_PATCH 0
/* One number that grows with the version, for #if: 2.3.4 is 20304. */
#define BK_VERSION_NUMBER (BK_VERSION_MAJOR * 10000 + BK_VERSION_MINOR * 100 + BK_VERSION_PATCH)

/* The version of the library that the program runs with: "0.1.0". The text is never NULL and stays
 * valid. */
BK_API const char *bk_version(void);

#ifdef __cplusplus
}
#endif
#endif
