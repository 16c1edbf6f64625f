// Several threads that each have work done together. Part of native_fuzz.cpp.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "threads.h"

namespace {

// Whether every piece was done once, and none after the call returned.
bool does_all_once(int64_t threads, int64_t pieces) {
    std::vector<std::atomic<int>> done(pieces);
    std::atomic<int64_t> next{0}, inside{0};
    quire::run_together(threads, [&] {
        inside++;
        for (int64_t piece = next++; piece < pieces; piece = next++) done[piece]++;
        inside--;
    });
    bool is_right = inside == 0;
    for (const std::atomic<int>& count : done) is_right = is_right && count == 1;
    return is_right;
}

// Whether another thread comes to work that waits for it.
bool is_helped() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    std::atomic<int> inside{0};
    quire::run_together(2, [&] {
        inside++;
        while (inside < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    return inside == 2;
}

// Whether a call of another thread has help while this one works alone.
bool leaves_the_helpers() {
    bool has_help = false;
    quire::run_together(1, [&] {
        std::thread([&] { has_help = is_helped(); }).join();
    });
    return has_help;
}

// A forked process has none of the threads that its parent had.
bool works_when_forked() {
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(does_all_once(3, 100) && does_all_once(3, 100) ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

bool fuzz_threads() {
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; caller++)
        callers.emplace_back([&wrong, caller] {
            for (int round = 0; round < 500; round++) {
                if (!does_all_once(1 + (round + caller) % 4, round % 50)) wrong++;
                // Long enough that helpers fall asleep.
                if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
            }
        });
    for (std::thread& caller : callers) caller.join();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (!works_when_forked() || !leaves_the_helpers()) wrong++;
    if (wrong > 0) std::printf("work done together: %d times wrong\n", wrong.load());
    return wrong == 0;
}
