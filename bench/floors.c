/*
 * What the kernel itself takes for the files of an interrupt: no checks, no parsing, no memory.
 *
 * floors read LIST:  opens, reads and closes each file of LIST, a path a line.
 * floors write LIST: four reads and a write of each interrupt. LIST has its actions, affinity and
 *                    effective affinity, and the value, a line each.
 * Prints the CPU time of that, in nanoseconds; the list is read before.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

int main(int count, char **words)
{
	size_t lines = 0, room = 1 << 10;
	char **line = malloc(room * sizeof *line), *text = NULL;
	size_t size = 0;

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
