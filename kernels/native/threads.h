// Threads that help the calling one: what they have not begun when it is done, it has done itself.
//
// A processor that another process keeps busy so costs at most itself: two of which one is busy do
// what one does. Only a helper that is interrupted within a piece is waited for, where a team that
// waits for all its members may cost a time slice at each call.
#pragma once

#include <atomic>
#include <cstdint>

namespace quire {

// Calls `work(context)` here and, as they wake, on up to `threads` - 1 others; `work` takes pieces
// from a common counter until none is left. Returns when every call has ended.
void run_together(int64_t threads, void (*work)(void*), void* context);

template <class Work>
void run_together(int64_t threads, Work work) {
    run_together(threads, [](void* context) { (*static_cast<Work*>(context))(); }, &work);
}

// Calls run(piece) for each of 0 .. pieces - 1.
template <class Run>
void run_pieces(int64_t threads, int64_t pieces, Run run) {
    if (threads > pieces) threads = pieces;
    std::atomic<int64_t> next{0};
    run_together(threads, [&] {
        for (int64_t piece = next++; piece < pieces; piece = next++) run(piece);
    });
}

}  // namespace quire
