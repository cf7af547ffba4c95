/* kgen-worker: runs Candidates and nothing else, and may die at any time. Started by kgen with a
 * socket as descriptor 3, and with the word "cuda" for a GPU; refuses to do anything when a person
 * starts it. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/cpu_worker.h"
#include "worker/cuda_worker.h"
#include "worker/protocol.h"

int main(int argc, char **argv) {
    int type = 0;
    socklen_t n = sizeof type;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("kgen-worker %s, protocol %d\n", KGEN_VERSION, KG_W_FORMAT);
        return 0;
    }
    bool cuda = argc == 2 && strcmp(argv[1], "cuda") == 0;
    if ((argc != 1 && !cuda) || getsockopt(KG_W_SOCKET, SOL_SOCKET, SO_TYPE, &type, &n) != 0 ||
        type != SOCK_SEQPACKET) {
        fprintf(stderr, "kgen-worker is started by kgen, which judges Candidates in it\n");
        return 2;
    }
    /* Not through exit handlers: they may want what the locks forbid. */
    _exit(cuda ? kg_cuda_worker(KG_W_SOCKET) : kg_cpu_worker(KG_W_SOCKET));
}
