/* Preloaded, it makes a file system look like exFAT or a FUSE mount: LACKING names the calls that are not there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int lacks(const char *call) {
    const char *lacking = getenv("LACKING");
    return lacking && strstr(lacking, call);
}

int link(const char *from, const char *to) {
    int (*next)(const char *, const char *) = dlsym(RTLD_NEXT, "link");
    if (!lacks("link")) return next(from, to);
    errno = EOPNOTSUPP;
    return -1;
}

int linkat(int from, const char *source, int to, const char *target, int flags) {
    int (*next)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    if (!lacks("link")) return next(from, source, to, target, flags);
    errno = EPERM;
    return -1;
}

int renameat2(int from, const char *source, int to, const char *target, unsigned flags) {
    int (*next)(int, const char *, int, const char *, unsigned) = dlsym(RTLD_NEXT, "renameat2");
    if (!lacks("renameat2")) return next(from, source, to, target, flags);
    errno = EINVAL;
    return -1;
}

int flock(int file, int operation) {
    int (*next)(int, int) = dlsym(RTLD_NEXT, "flock");
    if (!lacks("flock")) return next(file, operation);
    errno = ENOLCK;
    return -1;
}
