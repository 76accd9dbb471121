// SPDX-License-Identifier: GPL-2.0
/*
 * Run a command while a BPF program changes the header of every request that is sent.
 *
 * Usage: helper_bpf OFFSET VALUE COMMAND...
 *
 * The byte at OFFSET of the header becomes VALUE, by way of the tracepoint nbd_send_request. Exit
 * status: that of the command; 4 if there is no BPF.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define SKIP		4

static int bpf(int cmd, union bpf_attr *attr)
{
	return syscall(SYS_bpf, cmd, attr, sizeof(*attr));
}

static int fail(const char *what, const char *log)
{
	fprintf(stderr, "%s: %s\n%s", what, strerror(errno), log);
	return errno == ENOSYS ? SKIP : 1;
}

int main(int argc, char **argv)
{
	static const char license[] = "GPL";
	static char log[65536];
	struct bpf_insn program[] = {
		/* r6 = the first argument, the header */
		{ .code = BPF_LDX | BPF_MEM | BPF_DW, .dst_reg = 6, .src_reg = 1 },
		{ .code = BPF_ST | BPF_MEM | BPF_B, .dst_reg = 6 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {};
	int fd, status;
	pid_t pid;

	if (argc < 4) {
		fprintf(stderr, "usage: %s OFFSET VALUE COMMAND...\n", argv[0]);
		return 2;
	}
	program[1].off = strtol(argv[1], NULL, 0);
	program[1].imm = strtol(argv[2], NULL, 0);

	attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT_WRITABLE;
	attr.insns = (uintptr_t)program;
	attr.insn_cnt = ARRAY_SIZE(program);
	attr.license = (uintptr_t)license;
	attr.log_buf = (uintptr_t)log;
	attr.log_size = sizeof(log);
	attr.log_level = 1;
	fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd < 0)
		return fail("loading the program", log);

	memset(&attr, 0, sizeof(attr));
	attr.raw_tracepoint.name = (uintptr_t)"nbd_send_request";
	attr.raw_tracepoint.prog_fd = fd;
	if (bpf(BPF_RAW_TRACEPOINT_OPEN, &attr) < 0)
		return fail("attaching it to nbd_send_request", "");

	pid = fork();
	if (pid < 0)
		return fail("fork", "");
	if (pid == 0) {
		execvp(argv[3], argv + 3);
		fail(argv[3], "");
		_exit(127);
	}
	if (waitpid(pid, &status, 0) < 0)
		return fail("waitpid", "");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
