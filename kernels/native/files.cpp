// Reads stretches of files, and looks whether numbers are finite: each thread some of it.
#include <cerrno>
#include <cstring>
#include <unistd.h>

#include "library.h"
#include "threads.h"

extern "C" {
int64_t quire_read(int64_t file, int64_t begin, int64_t bytes, void* to, int64_t threads);
int quire_is_finite(int64_t item_bytes, int64_t exponent, const void* numbers, int64_t count,
                    int64_t threads);
}

namespace quire {
namespace {

constexpr int64_t READ_BYTES = 1 << 20;    // of a file at once
constexpr int64_t CHECK_BYTES = 1 << 16;

int64_t pieces_of(int64_t bytes, int64_t piece) { return (bytes + piece - 1) / piece; }

// How many of the bytes are there; -1 where the system refuses to read.
int64_t read_piece(int file, int64_t begin, int64_t bytes, char* to) {
    int64_t done = 0;
    while (done < bytes) {
        const ssize_t count = pread(file, to + done, bytes - done, begin + done);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return -1;
        if (count == 0) break;
        done += count;
    }
    return done;
}

// Whether a number has all bits of the exponent, as NaN and infinity have and no other.
template <class Word>
bool has_full(const char* from, int64_t count, Word exponent) {
    Word any = 0;
    for (int64_t i = 0; i < count; i++) {
        Word number;
        std::memcpy(&number, from + i * sizeof(Word), sizeof(Word));
        any |= Word((number & exponent) == exponent);
    }
    return any != 0;
}

}  // namespace
}  // namespace quire

using namespace quire;

// Bytes `begin` and on of an open file. Returns how many are there before one that is not, or minus
// the system's number of what is wrong.
EXPORT int64_t quire_read(int64_t file, int64_t begin, int64_t bytes, void* to, int64_t threads) {
    std::atomic<int64_t> end{bytes}, error{0};
    run_pieces(threads, pieces_of(bytes, READ_BYTES), [&](int64_t number) {
        const int64_t first = number * READ_BYTES;
        const int64_t size = bytes - first < READ_BYTES ? bytes - first : READ_BYTES;
        const int64_t done = read_piece(int(file), begin + first, size,
                                        static_cast<char*>(to) + first);
        if (done < 0) error = errno;
        int64_t known = end;
        while (done >= 0 && done < size && first + done < known)
            if (end.compare_exchange_weak(known, first + done)) break;
    });
    return error ? -error : int64_t(end);
}

// 1 if no number has all bits of `exponent`, 0 if one has; -1 for another size than 2, 4 or 8 bytes.
EXPORT int quire_is_finite(int64_t item_bytes, int64_t exponent, const void* numbers, int64_t count,
                           int64_t threads) {
    if (item_bytes != 2 && item_bytes != 4 && item_bytes != 8) return -1;
    const int64_t most = CHECK_BYTES / item_bytes;
    std::atomic<bool> found{false};
    run_pieces(threads, pieces_of(count, most), [&](int64_t number) {
        const int64_t first = number * most, size = count - first < most ? count - first : most;
        const char* from = static_cast<const char*>(numbers) + first * item_bytes;
        if (found) return;
        if (item_bytes == 2 ? has_full<uint16_t>(from, size, uint16_t(exponent))
            : item_bytes == 4 ? has_full<uint32_t>(from, size, uint32_t(exponent))
                              : has_full<uint64_t>(from, size, uint64_t(exponent)))
            found = true;
    });
    return found ? 0 : 1;
}
