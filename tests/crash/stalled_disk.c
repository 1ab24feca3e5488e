/* Makes fsync and fdatasync of the SQLite files wait while the file named by STALL_WHILE exists; the spill's do not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_while_stalled(int file) {
    const char *flag = getenv("STALL_WHILE");
    char link[64], name[4096];
    ssize_t length;
    if (flag == NULL) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, name, sizeof name - 1);
    if (length <= 0) return;
    name[length] = 0;
    if (strstr(name, ".db") == NULL || strstr(name, "-spill-") != NULL || strstr(name, "-refused") != NULL) return;
    while (access(flag, F_OK) == 0) usleep(20000);
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    wait_while_stalled(file);
    return real(file);
}

int fdatasync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    wait_while_stalled(file);
    return real(file);
}
