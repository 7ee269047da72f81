// What torch's library asks of CUDA devices, answered for some that do nothing: see tensor.py. There are as many as
// the environment's SIMULATED_GPUS says, or one.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/reducer_timer.hpp>

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

namespace {

using namespace c10;

// Ordinary memory whose addresses are remembered, so that a tensor can be asked if it is pinned.
struct PinnedMemory final : Allocator {
  static inline std::map<uintptr_t, size_t> blocks;
  static inline std::mutex mutex;

  static void release(void* start) {
    std::lock_guard<std::mutex> lock(mutex);
    blocks.erase(reinterpret_cast<uintptr_t>(start));
    std::free(start);
  }
  DataPtr allocate(size_t size) override {
    void* start = std::aligned_alloc(64, (size / 64 + 1) * 64);
    std::lock_guard<std::mutex> lock(mutex);
    blocks[reinterpret_cast<uintptr_t>(start)] = size;
    return {start, start, &release, Device(DeviceType::CPU)};
  }
  DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  static bool holds(const void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    auto place = reinterpret_cast<uintptr_t>(data);
    auto next = blocks.upper_bound(place);
    return next != blocks.begin() && place < std::prev(next)->first + std::prev(next)->second;
  }
};

DeviceIndex count() {
  const char* text = std::getenv("SIMULATED_GPUS");
  return text ? std::atoi(text) : 1;
}

thread_local DeviceIndex current = 0;

// Devices with one stream each, on which everything is done at once.
struct Guard final : impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  Device exchangeDevice(Device device) const override {
    return Device(DeviceType::CUDA, std::exchange(current, device.index()));
  }
  void setDevice(Device device) const override { current = device.index(); }
  void uncheckedSetDevice(Device device) const noexcept override { current = device.index(); }
  DeviceIndex deviceCount() const noexcept override { return count(); }
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getDefaultStream(Device device) const override { return getStream(device); }
  Stream exchangeStream(Stream stream) const override { return getStream(stream.device()); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  // an event is the time at which it was recorded
  void record(void** event, const Stream&, const DeviceIndex, const EventFlag) const override {
    if (!*event) *event = new int64_t;
    *static_cast<int64_t*>(*event) = getTime();
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override { delete static_cast<int64_t*>(event); }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  double elapsedTime(void* first, void* last, const DeviceIndex) const override {
    return (*static_cast<int64_t*>(last) - *static_cast<int64_t*>(first)) / 1e6;
  }
};

// Torch looks this class up by its name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return count(); }
  int getNumGPUs() const override { return count(); }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex device) const override { current = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override { return std::exchange(current, device); }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return std::exchange(current, device); }
  void deviceSynchronize(DeviceIndex) const override {}
  bool isPinnedPtr(const void* data) const override { return PinnedMemory::holds(data); }
  Allocator* getPinnedMemoryAllocator() const override {
    static PinnedMemory memory;
    return &memory;
  }
  // the host's, so that dropout draws the same numbers as without a GPU
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { return at::detail::getDefaultCPUGenerator(); }
};

// What DDP asks for the times of its parts.
struct Clock final : c10d::Timer {
  explicit Clock(Device) {}
  void record(Event event) override { getTimeRef(event) = c10d::current_time_in_nanos(); }
  std::optional<int64_t> measureDifference(Event start, Event end) override {
    return getTimeRef(end) - getTimeRef(start);
  }
};

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, Guard);
namespace c10d {
C10_REGISTER_TYPED_CLASS(TimerRegistry, c10::kCUDA, Clock);
}
namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks);
}
