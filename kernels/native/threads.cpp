#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace quire {
namespace {

// About what is between two kernels of a step. Longer, and the system sees a thread that uses more
// than its share, which it then interrupts in the middle of work.
constexpr std::chrono::microseconds SPIN_TIME{30};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Arithmetic as processors start with it. A program changes that of a thread, as by
// torch.set_flush_denormal, but bits must not depend on the thread that computes.
class UsualArithmetic {
#if defined(__x86_64__)
  public:
    UsualArithmetic() { __builtin_ia32_ldmxcsr(0x1f80); }
    ~UsualArithmetic() { __builtin_ia32_ldmxcsr(before_); }

  private:
    const unsigned before_ = __builtin_ia32_stmxcsr();
#endif
};

template <class Condition>
bool spin_until(Condition is_met) {
    auto end = std::chrono::steady_clock::now() + SPIN_TIME;
    do {
        for (int i = 0; i < 64; i++) {
            if (is_met()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

class Pool {
  public:
    void run(int64_t threads, void (*work)(void*), void* context) {
        UsualArithmetic arithmetic;
        if (threads <= 1) return work(context);
        std::unique_lock<std::mutex> alone(in_use_, std::try_to_lock);
        // Calls from several threads at once: each is then as wide as a processor.
        if (!alone.owns_lock()) return work(context);
        hire(threads - 1);
        work_ = work;
        context_ = context;
        seats_ = (threads - 1) * SEAT;
        job_++;
        if (sleeping_ > 0) wake(threads - 1);
        work(context);
        // Takes the empty seats away, then waits for those who sat down.
        seats_ &= SEAT - 1;
        while (!spin_until([this] { return seats_ == 0; })) std::this_thread::yield();
    }

  private:
    static constexpr int64_t SEAT = 1 << 20;

    void hire(int64_t helpers) {
        try {
            for (; helpers_ < helpers; helpers_++) std::thread(&Pool::serve, this).detach();
        } catch (const std::system_error&) {
            // The system has no more threads to give: those that there are do the work.
        }
    }

    // Wakes about as many as the job has seats for: each of the others would cost its processor
    // some 30 us.
    void wake(int64_t seats) {
        // Who counts as sleeping either waits once the mutex was ours, or is yet to look at job_.
        mutex_.lock();
        mutex_.unlock();
        if (2 * seats > helpers_) return wake_.notify_all();
        while (seats-- > 0) wake_.notify_one();
    }

    void serve() {
        UsualArithmetic arithmetic;
        for (int64_t seen = 0;;) {
            if (!spin_until([&] { return job_ != seen; })) sleep(seen);
            seen = job_;
            // As of here it may be the next job: whose seat is taken, that one is worked on.
            for (int64_t seats = seats_; seats >= SEAT;)
                if (seats_.compare_exchange_weak(seats, seats - SEAT + 1)) {
                    work_.load()(context_);
                    seats_--;
                    break;
                }
        }
    }

    void sleep(int64_t seen) {
        std::unique_lock<std::mutex> hold(mutex_);
        sleeping_++;
        wake_.wait(hold, [&] { return job_ != seen; });
        sleeping_--;
    }

    std::atomic<int64_t> job_{0}, sleeping_{0};
    std::atomic<int64_t> seats_{0};  // empty ones times SEAT, plus those who work
    std::atomic<void (*)(void*)> work_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::mutex in_use_, mutex_;
    std::condition_variable wake_;
    int64_t helpers_ = 0;
};

// Never destroyed: helpers may outlive the statics of the process.
Pool* pool = new Pool;

// A process that was forked has none of the helpers.
const int is_renewed = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

void run_together(int64_t threads, void (*work)(void*), void* context) {
    pool->run(threads, work, context);
}

}  // namespace quire
