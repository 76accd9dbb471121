// SPDX-License-Identifier: GPL-2.0
/*
 * Write a device with several threads, a large request each at a time, while all of them are hit
 * by signals, and read everything back and compare.
 *
 * Usage: helper_storm DEVICE [KIB_PER_REQUEST [REQUESTS_PER_THREAD [THREADS]]]
 *
 * A signal makes a send that waits for room in the socket's buffer return early, so that a
 * request has left in part: whatever the driver does about that, the data must be right. Exit
 * status 0: they are.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX	64

static size_t request = 1 << 20;
static int requests = 8, nthreads = 8, device;
static atomic_int running, failed;
static atomic_long signals;

static void on_signal(int sig)
{
	(void)sig;
	signals++;
}

static void fill(uint64_t *buf, off_t off)
{
	size_t i;

	for (i = 0; i < request / 8; i++)
		buf[i] = ~(off + i * 8);
}

static off_t place(int thread, int n)
{
	return ((off_t)n * nthreads + thread) * request;
}

static void complain(const char *what, off_t off)
{
	fprintf(stderr, "%s at %lld: %s\n", what, (long long)off, strerror(errno));
	failed++;
}

static void *writer(void *arg)
{
	int thread = (intptr_t)arg, n;
	uint64_t *buf, *want;

	if (posix_memalign((void **)&buf, 4096, request) ||
	    posix_memalign((void **)&want, 4096, request))
		exit(2);
	for (n = 0; n < requests; n++) {
		fill(buf, place(thread, n));
		if (pwrite(device, buf, request, place(thread, n)) != (ssize_t)request)
			complain("write", place(thread, n));
	}
	for (n = 0; n < requests; n++) {
		fill(want, place(thread, n));
		memset(buf, 0, request);
		errno = 0;
		if (pread(device, buf, request, place(thread, n)) != (ssize_t)request)
			complain("read", place(thread, n));
		else if (memcmp(buf, want, request))
			complain("wrong data", place(thread, n));
	}
	running--;
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	struct timespec pause = { .tv_nsec = 500000 };
	pthread_t id[THREADS_MAX];
	int i;

	if (argc < 2)
		return 2;
	if (argc > 2)
		request = strtoul(argv[2], NULL, 0) << 10;
	if (argc > 3)
		requests = atoi(argv[3]);
	if (argc > 4)
		nthreads = atoi(argv[4]);
	device = open(argv[1], O_RDWR | O_DIRECT);
	if (device < 0 || nthreads > THREADS_MAX) {
		perror(argv[1]);
		return 2;
	}
	sigaction(SIGUSR1, &sa, NULL);
	running = nthreads;
	for (i = 0; i < nthreads; i++)
		pthread_create(&id[i], NULL, writer, (void *)(intptr_t)i);
	while (running) {
		for (i = 0; i < nthreads; i++)
			pthread_kill(id[i], SIGUSR1);
		nanosleep(&pause, NULL);
	}
	for (i = 0; i < nthreads; i++)
		pthread_join(id[i], NULL);
	printf("%ld signals, %d failures\n", (long)signals, (int)failed);
	return failed ? 1 : 0;
}
