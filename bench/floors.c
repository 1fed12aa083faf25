/*
 * What the kernel itself takes for the files of an interrupt: no checks, no parsing, no memory.
 *
 * floors read LIST:  opens, reads and closes each file of LIST, a path a line.
 * floors write LIST: four reads and a write of each interrupt. LIST has its actions, affinity and
 *                    effective affinity, and the value, a line each.
 * floors react FILE VALUE: reads a trace_pipe's lines from its standard input, writes VALUE to the
 *                    affinity of each interrupt that is requested, and notes in FILE when: see
 *                    bench/reacting.py.
 * floors run FILE COMMAND…: runs a command, and puts into FILE its CPU time in microseconds and the
 *                    most memory that it had in KiB. Who starts a program is counted as its memory
 *                    until it has begun (fs/exec.c, exec_mmap()): this here is small.
 * Prints the CPU time of that, in nanoseconds; the list is read before.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[16384];

static long long cpu_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void read_file(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0 || read(file, buffer, sizeof buffer) < 0) {
		perror(path);
		exit(1);
	}
	close(file);
}

static void write_file(const char *path, const char *value)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t length = strlen(value);

	if (file < 0 || write(file, value, length) != length) {
		perror(path);
		exit(1);
	}
	close(file);
}

static long long now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int react(const char *shared, const char *value)
{
	static char data[1 << 18];
	struct pollfd input = { .fd = 0, .events = POLLIN };
	int file = open(shared, O_RDWR | O_CLOEXEC);
	long long *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	size_t held = 0;
	ssize_t got;
	char path[64];

	if (told == MAP_FAILED)
		return 1;
	while (poll(&input, 1, -1) > 0 && (got = read(0, data + held, sizeof data - 1 - held)) > 0) {
		char *line = data, *end;

		held += got;
		data[held] = '\0';
		for (; (end = strchr(line, '\n')); line = end + 1) {
			unsigned int irq, vector;
			char *found;

			*end = '\0';
			found = strstr(line, " irq=");
			if (!found || sscanf(found, " irq=%u name=\"vfio-msix[%u]", &irq, &vector) != 2)
				continue;
			snprintf(path, sizeof path, "/proc/irq/%u/smp_affinity_list", irq);
			write_file(path, value);
			told[2] = now();
			if (!told[1])
				told[1] = told[2];
			told[3]++;
		}
		held -= line - data;
		memmove(data, line, held);
	}
	return 0;
}

static int run(const char *told, char **command)
{
	struct rusage used;
	int status;
	pid_t child = fork();

	if (!child) {
		execvp(command[0], command);
		perror(command[0]);
		_exit(127);
	}
	if (child < 0 || wait4(child, &status, 0, &used) != child)
		return 1;
	FILE *file = fopen(told, "w");

	if (!file)
		return 1;
	fprintf(file, "%lld %ld\n",
		(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL +
			used.ru_utime.tv_usec + used.ru_stime.tv_usec,
		used.ru_maxrss);
	fclose(file);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int count, char **words)
{
	if (count > 3 && !strcmp(words[1], "run"))
		return run(words[2], words + 3);
	size_t lines = 0, room = 1 << 10;
	char **line = malloc(room * sizeof *line), *text = NULL;
	size_t size = 0;

	if (count == 4 && !strcmp(words[1], "react"))
		return react(words[2], words[3]);
	if (count != 3)
		return 2;
	FILE *list = fopen(words[2], "r");

	if (!list || !line)
		return 1;
	while (getline(&text, &size, list) > 0) {
		text[strcspn(text, "\n")] = '\0';
		if (lines == room)
			line = realloc(line, (room *= 2) * sizeof *line);
		line[lines++] = strdup(text);
	}
	long long begin = cpu_time();

	if (!strcmp(words[1], "read")) {
		for (size_t i = 0; i < lines; i++)
			read_file(line[i]);
	} else {
		for (size_t i = 0; i + 3 < lines; i += 4) {
			read_file(line[i]);
			read_file(line[i + 1]);
			write_file(line[i + 1], line[i + 3]);
			read_file(line[i + 1]);
			read_file(line[i + 2]);
		}
	}
	printf("%lld\n", cpu_time() - begin);
	return 0;
}
