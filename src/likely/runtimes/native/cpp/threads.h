// A fixed team of threads that run one function together and meet at barriers.
// They spin for a moment and then sleep, so that an idle team costs nothing and a crowded machine is not made worse.
#pragma once
#if defined(__linux__)
#include <sched.h>
#endif
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

// A processor for each thread of a team that takes all of them, once it was told to keep them.  Else a short piece of
// somebody else's work on one processor may push its thread to another's, where both then wait for each other for several
// milliseconds.  Beside long work of others threads that cannot move wait longer.
class Places {
 public:
  explicit Places(int threads) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (threads < 2 || sched_getaffinity(0, sizeof allowed, &allowed) || CPU_COUNT(&allowed) != threads) return;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &allowed)) cpus_.push_back(cpu);
#endif
  }
  // the calling thread stays on the processor of that number
  void take(int id) const {
#if defined(__linux__)
    if (cpus_.empty()) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus_[id], &one);
    sched_setaffinity(0, sizeof one, &one);  // where this is not allowed nothing changes
#endif
  }
  // for the time of a call: a caller's thread may run wherever it might before
  struct Visit {
    Visit(const Places& places, bool kept) : places_(places) {
#if defined(__linux__)
      known_ = kept && !places.cpus_.empty() && !sched_getaffinity(0, sizeof before_, &before_);
      if (known_) places.take(0);
#endif
    }
    ~Visit() {
#if defined(__linux__)
      if (known_) sched_setaffinity(0, sizeof before_, &before_);
#endif
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

   private:
    const Places& places_;
#if defined(__linux__)
    cpu_set_t before_;
    bool known_ = false;
#endif
  };

 private:
  std::vector<int> cpus_;
};

struct Team {
  explicit Team(int size) : size_(size), places_(size) {
    try {
      for (int id = 1; id < size; id++) workers_.emplace_back([this, id] { work(id); });
    } catch (...) {  // no more threads
      stop();
      throw;
    }
  }
  ~Team() { stop(); }
  int size() const { return size_; }
  void keep_processors() { kept_.store(true); }

  // job(id) on every thread; returns when all are done
  void run(const std::function<void(int)>& job) {
    next_.store(0, std::memory_order_relaxed);
    if (size_ == 1) return job(0);
    job_ = &job;
    {
      std::lock_guard<std::mutex> hold(mutex_);
      round_.fetch_add(1);
    }
    wake_.notify_all();
    const Places::Visit visit(places_, kept_.load(std::memory_order_relaxed));
    job(0);
    meet();
  }
  // wait for all; afterwards `next` counts from 0 again
  void meet() {
    if (size_ == 1) {
      next_.store(0, std::memory_order_relaxed);
      return;
    }
    unsigned turn = turn_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1);
      if (sleepers_.load()) {
        std::lock_guard<std::mutex> hold(mutex_);
        wake_.notify_all();
      }
      return;
    }
    for (int spins = 0; spins < SPINS + YIELDS; spins++) {
      if (turn_.load(std::memory_order_acquire) != turn) return;
      pause(spins);
    }
    sleepers_.fetch_add(1);  // before `turn_` is read again: whoever comes last reads them in the other order
    {
      std::unique_lock<std::mutex> hold(mutex_);
      wake_.wait(hold, [&] { return turn_.load() != turn; });
    }
    sleepers_.fetch_sub(1);
  }
  // the next `grain` of `count` tasks: [first, last); false when none is left
  bool take(int count, int grain, int& first, int& last) {
    first = next_.fetch_add(grain, std::memory_order_relaxed);
    if (first >= count) return false;
    last = first + grain < count ? first + grain : count;
    return true;
  }
  // which task this thread is likely to work on after `i` of its [.., last): -1 if probably none
  int after(int i, int last, int grain, int count) const {
    const int next = i + 1 < last ? i + 1 : last + (size_ - 1) * grain;
    return next < count ? next : -1;
  }
  int grain(int count) const {
    int g = count / (size_ * 8);
    return g < 1 ? 1 : g;
  }

 private:
  static constexpr int SPINS = 4000, YIELDS = 64;  // at a barrier, before a thread sleeps: others wait for the processor
  void stop() {
    {
      std::lock_guard<std::mutex> hold(mutex_);
      stop_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  static void pause(int spins) {
#if defined(__x86_64__)
    if (spins < SPINS) return __builtin_ia32_pause();
#else
    if (spins < SPINS) return;
#endif
    std::this_thread::yield();
  }
  void work(int id) {
    unsigned seen = 0;
    bool placed = false;
    while (true) {
      for (int spins = 0; round_.load(std::memory_order_acquire) == seen && spins < 20000; spins++) pause(0);
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> hold(mutex_);
        wake_.wait(hold, [&] { return round_.load(std::memory_order_acquire) != seen; });
      }
      seen = round_.load(std::memory_order_acquire);
      if (stop_) return;
      if (!placed && kept_.load(std::memory_order_relaxed)) {
        places_.take(id);
        placed = true;
      }
      (*job_)(id);
      meet();
    }
  }

  const int size_;
  const Places places_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* job_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<unsigned> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> turn_{0};
  alignas(64) std::atomic<int> next_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> kept_{false};
};
