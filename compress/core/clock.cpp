#include <coppice/clock.h>
#include <sys/resource.h>
#include <time.h>

namespace coppice {
namespace {

double seconds_of(clockid_t clock) {
    timespec time{};
    ::clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

double wall_seconds() {
    return seconds_of(CLOCK_MONOTONIC);
}

double cpu_seconds(bool with_children) {
    double seconds = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    if (with_children) {
        rusage usage{};
        ::getrusage(RUSAGE_CHILDREN, &usage);
        seconds += static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    }
    return seconds;
}

}  // namespace coppice
