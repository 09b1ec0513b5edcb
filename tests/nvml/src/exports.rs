//! The functions of the public header that the agent calls.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings as header;

use crate::control::{Control, Gpu, Instance, Process};

const SUCCESS: u32 = header::nvmlReturn_enum_NVML_SUCCESS;
const INVALID: u32 = header::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const UNSUPPORTED: u32 = header::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const NOT_FOUND: u32 = header::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const TOO_SMALL: u32 = header::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const UNLOADED: u32 = header::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
const TIMEOUT: u32 = header::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
const LOST: u32 = header::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;

/// A handle is a number, never followed: the GPU's place and the instance's, from one.
type Handle = *mut c_void;

/// Events told so far.
static TOLD: AtomicUsize = AtomicUsize::new(0);

fn handle(gpu: usize, instance: Option<usize>) -> Handle {
    std::ptr::without_provenance_mut(((gpu + 1) << 8) | instance.map_or(0, |at| at + 1))
}

/// Calls `with` with what a handle stands for.
fn at(device: Handle, with: impl FnOnce(&Control, &Gpu, Option<&Instance>) -> u32) -> u32 {
    let control = Control::read();
    let number = device.addr();
    let visible = control.visible();
    let Some(gpu) = (number >> 8).checked_sub(1).and_then(|at| visible.get(at)) else {
        return INVALID;
    };
    if gpu.lost {
        return LOST;
    }
    match (number & 0xff).checked_sub(1) {
        None => with(&control, gpu, None),
        Some(place) => match control.instances(gpu).get(place) {
            Some(instance) => with(&control, gpu, Some(instance)),
            None => INVALID,
        },
    }
}

/// # Safety
/// `into` is valid for writing.
unsafe fn put<T>(into: *mut T, value: T) -> u32 {
    if into.is_null() {
        return INVALID;
    }
    // SAFETY: as the caller promises.
    unsafe { into.write(value) };
    SUCCESS
}

/// # Safety
/// `into` is valid for writing `length` bytes.
unsafe fn put_text(into: *mut c_char, length: c_uint, text: &str) -> u32 {
    if text.len() >= length as usize {
        return TOO_SMALL;
    }
    // SAFETY: as the caller promises; the text and its end fit.
    unsafe {
        into.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        into.add(text.len()).write(0);
    }
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> u32 {
    if Control::read().driver.is_empty() {
        return UNLOADED;
    }
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(into: *mut c_char, length: c_uint) -> u32 {
    // SAFETY: the header's contract.
    unsafe { put_text(into, length, &Control::read().driver) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(into: *mut c_int) -> u32 {
    // SAFETY: the header's contract.
    unsafe { put(into, Control::read().cuda) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(into: *mut c_int) -> u32 {
    // SAFETY: the header's contract.
    unsafe { put(into, Control::read().cuda) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(into: *mut c_uint) -> u32 {
    let control = Control::read();
    // SAFETY: the header's contract.
    unsafe { put(into, control.visible().len() as c_uint) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, into: *mut Handle) -> u32 {
    if index as usize >= Control::read().visible().len() {
        return INVALID;
    }
    // SAFETY: the header's contract.
    unsafe { put(into, handle(index as usize, None)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, into: *mut Handle) -> u32 {
    // SAFETY: the header's contract: a C string.
    let uuid = unsafe { std::ffi::CStr::from_ptr(uuid) }.to_string_lossy();
    let control = Control::read();
    for (place, gpu) in control.visible().into_iter().enumerate() {
        if gpu.uuid == uuid {
            // SAFETY: the header's contract.
            return unsafe { put(into, handle(place, None)) };
        }
        let mut instances = control.instances(gpu).into_iter();
        if let Some(at) = instances.position(|instance| instance.uuid == uuid) {
            // SAFETY: the header's contract.
            return unsafe { put(into, handle(place, Some(at))) };
        }
    }
    NOT_FOUND
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: Handle, into: *mut c_char, length: c_uint) -> u32 {
    at(device, |_, gpu, instance| {
        let uuid = instance.map_or(&gpu.uuid, |instance| &instance.uuid);
        // SAFETY: the header's contract.
        unsafe { put_text(into, length, uuid) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: Handle, into: *mut c_char, length: c_uint) -> u32 {
    at(device, |_, gpu, instance| {
        let name = match instance {
            Some(instance) => format!("{} MIG {}", gpu.name, instance.profile),
            None => gpu.name.clone(),
        };
        // SAFETY: the header's contract.
        unsafe { put_text(into, length, &name) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetBrand(device: Handle, into: *mut c_uint) -> u32 {
    // SAFETY: the header's contract.
    at(device, |_, gpu, _| unsafe { put(into, gpu.brand) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetArchitecture(device: Handle, into: *mut c_uint) -> u32 {
    // SAFETY: the header's contract.
    at(device, |_, gpu, _| unsafe { put(into, gpu.architecture) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: Handle, into: *mut c_uint) -> u32 {
    at(device, |_, gpu, instance| match instance {
        Some(_) => UNSUPPORTED,
        // SAFETY: the header's contract.
        None => unsafe { put(into, gpu.minor) },
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Handle,
    major: *mut c_int,
    minor: *mut c_int,
) -> u32 {
    // SAFETY: the header's contract.
    at(device, |_, gpu, _| unsafe {
        put(major, gpu.capability.0);
        put(minor, gpu.capability.1)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: Handle,
    into: *mut header::nvmlMemory_v2_t,
) -> u32 {
    at(device, |_, gpu, instance| {
        let mib = instance.map_or(gpu.memory_mib, |instance| instance.memory_mib);
        let memory = instance.map_or(&gpu.memory, |instance| &instance.memory);
        if memory.untold {
            return UNSUPPORTED;
        }
        let of_processes = used(instance.map_or(&gpu.processes, |instance| &instance.processes));
        let used = of_processes + memory.used_bytes;
        let total = mib << 20;
        // SAFETY: the header's contract.
        unsafe {
            let version = (*into).version;
            let memory = header::nvmlMemory_v2_t {
                version,
                total,
                reserved: 0,
                free: total.saturating_sub(used),
                used,
            };
            put(into, memory)
        }
    })
}

fn used(processes: &[Process]) -> u64 {
    processes.iter().map(|process| process.memory_bytes).sum()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAccountingMode(device: Handle, into: *mut c_uint) -> u32 {
    at(device, |_, gpu, instance| match instance {
        // Instances have no accounts.
        Some(_) => UNSUPPORTED,
        None if gpu.memory.untold => UNSUPPORTED,
        // SAFETY: the header's contract.
        None => unsafe { put(into, c_uint::from(gpu.memory.accounts.is_some())) },
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAccountingPids(
    device: Handle,
    count: *mut c_uint,
    into: *mut c_uint,
) -> u32 {
    at(device, |_, gpu, _| {
        let Some(accounts) = &gpu.memory.accounts else {
            return UNSUPPORTED;
        };
        // SAFETY: the header's contract: room for `count`, or nowhere and 0.
        unsafe {
            let room = if into.is_null() { 0 } else { *count as usize };
            *count = accounts.len() as c_uint;
            if accounts.len() > room {
                return TOO_SMALL;
            }
            for (place, account) in accounts.iter().enumerate() {
                into.add(place).write(account.pid);
            }
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetAccountingStats(
    device: Handle,
    pid: c_uint,
    into: *mut header::nvmlAccountingStats_t,
) -> u32 {
    at(device, |_, gpu, _| {
        let mut accounts = gpu.memory.accounts.iter().flatten();
        let Some(account) = accounts.find(|account| account.pid == pid) else {
            return NOT_FOUND;
        };
        // SAFETY: a struct of numbers; all zero is a value of it.
        let mut stats: header::nvmlAccountingStats_t = unsafe { std::mem::zeroed() };
        stats.maxMemoryUsage = account.memory_bytes;
        // SAFETY: the header's contract.
        unsafe { put(into, stats) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: Handle,
    into: *mut header::nvmlPciInfo_t,
) -> u32 {
    at(device, |_, gpu, _| {
        let mut parts = gpu.bus.split([':', '.']);
        let mut next = || u32::from_str_radix(parts.next().unwrap_or("0"), 16).unwrap_or(0);
        // SAFETY: a struct of numbers and text; all zero is a value of it.
        let mut pci: header::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        (pci.domain, pci.bus, pci.device) = (next(), next(), next());
        for (to, from) in pci.busId.iter_mut().zip(gpu.bus.bytes()) {
            *to = from as c_char;
        }
        // SAFETY: the header's contract.
        unsafe { put(into, pci) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: Handle,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> u32 {
    at(device, |_, gpu, instance| {
        // Hopper and Ampere know MIG; others do not.
        let knows = matches!(
            gpu.architecture,
            header::NVML_DEVICE_ARCH_AMPERE | header::NVML_DEVICE_ARCH_HOPPER
        );
        if !knows || instance.is_some() {
            return UNSUPPORTED;
        }
        let mode = c_uint::from(gpu.instances.is_some());
        // SAFETY: the header's contract.
        unsafe {
            put(current, mode);
            put(pending, mode)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: Handle, into: *mut c_uint) -> u32 {
    // SAFETY: the header's contract.
    at(device, |_, _, _| unsafe { put(into, 7) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: Handle,
    index: c_uint,
    into: *mut Handle,
) -> u32 {
    at(device, |control, gpu, _| {
        if index as usize >= control.instances(gpu).len() {
            return NOT_FOUND;
        }
        let place = (device.addr() >> 8) - 1;
        // SAFETY: the header's contract.
        unsafe { put(into, handle(place, Some(index as usize))) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceIsMigDeviceHandle(device: Handle, into: *mut c_uint) -> u32 {
    // SAFETY: the header's contract.
    at(device, |_, _, instance| unsafe {
        put(into, c_uint::from(instance.is_some()))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Handle,
    count: *mut c_uint,
    into: *mut header::nvmlProcessInfo_t,
) -> u32 {
    at(device, |_, gpu, instance| {
        let list = instance.map_or(&gpu.processes, |instance| &instance.processes);
        // SAFETY: the header's contract: room for `count`, or nowhere and 0.
        unsafe {
            let room = if into.is_null() { 0 } else { *count as usize };
            *count = list.len() as c_uint;
            if list.len() > room {
                return TOO_SMALL;
            }
            for (place, process) in list.iter().enumerate() {
                into.add(place).write(header::nvmlProcessInfo_t {
                    pid: process.pid,
                    usedGpuMemory: process.memory_bytes,
                    gpuInstanceId: u32::MAX,
                    computeInstanceId: u32::MAX,
                });
            }
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: Handle,
    into: *mut c_ulonglong,
) -> u32 {
    let types = c_ulonglong::from(header::nvmlEventTypeXidCriticalError);
    // SAFETY: the header's contract.
    at(device, |_, _, _| unsafe { put(into, types) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(into: *mut Handle) -> u32 {
    // SAFETY: the header's contract.
    unsafe { put(into, std::ptr::without_provenance_mut(1)) }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(_set: Handle) -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(device: Handle, _types: c_ulonglong, _set: Handle) -> u32 {
    at(device, |_, _, _| SUCCESS)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    _set: Handle,
    into: *mut header::nvmlEventData_t,
    timeout_ms: c_uint,
) -> u32 {
    let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
    loop {
        let control = Control::read();
        if let Some(event) = control.events.get(TOLD.load(Ordering::SeqCst)) {
            TOLD.fetch_add(1, Ordering::SeqCst);
            let mut gpus = control.visible().into_iter();
            let Some(place) = gpus.position(|gpu| gpu.uuid == event.uuid) else {
                continue;
            };
            let data = header::nvmlEventData_t {
                device: handle(place, None).cast(),
                eventType: c_ulonglong::from(header::nvmlEventTypeXidCriticalError),
                eventData: event.xid,
                gpuInstanceId: u32::MAX,
                computeInstanceId: u32::MAX,
            };
            // SAFETY: the header's contract.
            return unsafe { put(into, data) };
        }
        if Instant::now() >= until {
            return TIMEOUT;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
