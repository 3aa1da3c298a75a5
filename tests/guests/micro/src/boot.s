# The path from the PVH entry to ring 3, and all code that runs in ring 0.
#
# Some hosts emulate ring 0 one instruction at a time, with an emulator that lacks many
# instructions. Ring 0 is therefore this file only: it is short and uses plain instructions. Ring 3
# requests its services with int3, the only software interrupt that works on all hosts.

.set MAX_CPUS, 4
.set LAPIC, 0xfee00000
.set TRAMPOLINE, 0x10000            # where ring 3 copies ap_trampoline to: below 1 MiB, page aligned
.set TSS_STRIDE, 12288
.set TSS_LIMIT, 0x68 + 8192         # the I/O permission bitmap and the byte of ones after it
.set STACK0_LEN, 8192
.set STACK3_LEN, 0x80000

.set CODE32, 0x08
.set CODE64, 0x10
.set DATA, 0x18
.set USER_DATA, 0x2b
.set USER_CODE64, 0x33
.set TSS_FIRST, 0x40

.set VECTOR_SERVICE, 3
.set VECTOR_TIMER, 0x41
.set VECTOR_NET, 0x42
.set VECTOR_DISK, 0x43
.set VECTOR_SPURIOUS, 0xff

# XEN_ELFNOTE_PHYS32_ENTRY: the loader enters here in 32-bit protected mode, with the address of the
# start info in %ebx.
.section .note.Xen, "a", @note
.balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

.text

# Enters long mode with the page tables below. Needs flat 32-bit segments.
.macro ENTER_LONG_MODE target
    mov $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx           # EFER
    rdmsr
    or $0x901, %eax                 # LME, NXE, SCE
    wrmsr
    mov $0x80050033, %eax           # PG, AM, WP, NE, ET, MP, PE
    mov %eax, %cr0
    ljmpl $CODE64, $\target
.endm

# Jumps to \entry in ring 3, with the stack in %rdx and with interrupts enabled.
.macro ENTER_RING3 entry
    mov $USER_DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    push $USER_DATA
    push %rdx
    push $0x202
    push $USER_CODE64
    push $\entry
    iretq
.endm

.code32
.globl pvh_start
pvh_start:
    cli
    cld
    mov %ebx, start_info
    lgdtl gdt_pointer
    ENTER_LONG_MODE bsp_long_mode

.code64
bsp_long_mode:
    mov $DATA, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov $stacks0 + STACK0_LEN, %esp
    # The descriptors of the task state segments: 16 bytes each, the base in four fields.
    xor %ecx, %ecx
    mov $gdt + TSS_FIRST, %edi
    mov $tss, %edx
1:  movw $TSS_LIMIT, (%rdi)
    mov %dx, 2(%rdi)
    mov %edx, %eax
    shr $16, %eax
    mov %al, 4(%rdi)
    movb $0x89, 5(%rdi)             # present, available 64-bit TSS
    movb $0, 6(%rdi)
    mov %ah, 7(%rdi)
    movl $0, 8(%rdi)
    movl $0, 12(%rdi)
    add $16, %edi
    add $TSS_STRIDE, %edx
    inc %ecx
    cmp $MAX_CPUS, %ecx
    jb 1b
    # The interrupt descriptors: all gates clear IF. Ring 3 may use only the service's.
    xor %ecx, %ecx
    mov $idt, %edi
    mov $stubs, %edx
2:  mov %edx, %eax
    mov %ax, (%rdi)
    movw $CODE64, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    cmp $VECTOR_SERVICE, %ecx
    jne 3f
    movw $0xee00, 4(%rdi)
3:  shr $16, %eax
    mov %ax, 6(%rdi)
    movl $0, 8(%rdi)
    movl $0, 12(%rdi)
    add $16, %edi
    add $16, %edx
    inc %ecx
    cmp $256, %ecx
    jb 2b
    lidt idt_pointer
    mov $TSS_FIRST, %eax
    ltr %ax
    mov $stacks3 + STACK3_LEN, %edx
    ENTER_RING3 bsp_ring3

bsp_ring3:
    # Clear .bss: the loader need not do it, and after a reset it holds old data.
    mov $bss_start, %edi
    mov $bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    rep stosb
    mov start_info, %edi
    xor %ebp, %ebp
    call bsp_main
    ud2

# The first instructions of an application processor, in real mode at TRAMPOLINE.
.code16
.globl ap_trampoline
ap_trampoline:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl (4f - ap_trampoline)
    mov $0x11, %eax                 # ET, PE
    mov %eax, %cr0
    ljmpl $CODE32, $ap_protected_mode
    .balign 4
4:  .word gdt_end - gdt - 1
    .long gdt
.globl ap_trampoline_end
ap_trampoline_end:

.code32
ap_protected_mode:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    ENTER_LONG_MODE ap_long_mode

.code64
ap_long_mode:
    mov $DATA, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    mov ap_index, %edi
    mov %edi, %eax
    inc %eax
    shl $13, %eax                   # STACK0_LEN
    add $stacks0, %eax
    mov %rax, %rsp
    lidt idt_pointer
    mov %edi, %eax
    shl $4, %eax
    add $TSS_FIRST, %eax
    ltr %ax
    mov %edi, %edx
    inc %edx
    shl $19, %edx                   # STACK3_LEN
    add $stacks3, %edx
    ENTER_RING3 ap_ring3

ap_ring3:
    xor %ebp, %ebp
    call ap_main
    ud2

# ---- Ring 0 from here on ----

# One stub of 16 bytes for each vector. The stub of a fault pushes the vector, and an error code if
# the CPU does not.
.balign 16
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == VECTOR_SERVICE
        jmp service
    .elseif vector == VECTOR_TIMER
        jmp wake
    .elseif vector == VECTOR_NET
        lock incq net_interrupts
        jmp wake
    .elseif vector == VECTOR_DISK
        lock incq disk_interrupts
        jmp wake
    .elseif vector == 2 || vector == VECTOR_SPURIOUS
        iretq
    .else
        .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
            push $0
        .endif
        push $vector
        jmp fault
    .endif
    .set vector, vector + 1
    .endr
.balign 16

# Handles an interrupt. Counts it first: a CPU that is about to halt compares the count.
wake:
    lock incq wake_count
    push %rbx
    mov $LAPIC, %ebx
    movl $0, 0xb0(%rbx)             # end of interrupt
    pop %rbx
    iretq

# The services for ring 3. Their number is in %eax.
service:
    cmp $1, %eax
    je 1f
    cmp $2, %eax
    je 2f
    # 0: halt until an interrupt, unless wake_count differs from %r8. STI delays interrupts until
    # HLT is executed.
    cmp wake_count, %r8
    jne 5f
    sti
    hlt
5:  iretq
    # 1: CPUID of leaf %r8d, subleaf %ecx. The result's %ebx is returned in %r8d.
1:  mov %rbx, %r9
    mov %r8d, %eax
    cpuid
    mov %ebx, %r8d
    mov %r9, %rbx
    iretq
    # 2: WRMSR of %r8 to register %ecx.
2:  mov %r8, %rax
    mov %r8, %rdx
    shr $32, %rdx
    wrmsr
    iretq

# Handles an exception from either ring: records it, and reports it in ring 3. fault_main does not
# return.
fault:
    mov (%rsp), %rax
    mov %rax, fault_record
    mov 8(%rsp), %rax
    mov %rax, fault_record + 8
    mov 16(%rsp), %rax
    mov %rax, fault_record + 16
    mov 24(%rsp), %rax
    mov %rax, fault_record + 24
    mov 40(%rsp), %rax
    mov %rax, fault_record + 32
    mov %cr2, %rax
    mov %rax, fault_record + 40
    mov $fault_stack + 0x8000, %edx
    ENTER_RING3 fault_ring3

fault_ring3:
    xor %ebp, %ebp
    mov $fault_record, %edi
    call fault_main
    ud2

.data
.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        # CODE32
    .quad 0x00af9b000000ffff        # CODE64
    .quad 0x00cf93000000ffff        # DATA
    .quad 0x00cffb000000ffff        # user 32-bit code
    .quad 0x00cff3000000ffff        # USER_DATA
    .quad 0x00affb000000ffff        # USER_CODE64
    .quad 0
    .fill 2 * MAX_CPUS, 8, 0        # TSS_FIRST ...
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 8
idt_pointer:
    .word 256 * 16 - 1
    .quad idt
.balign 8
start_info:
    .quad 0
.globl ap_index
ap_index:
    .quad 0
.globl wake_count
wake_count:
    .quad 0
.globl net_interrupts
net_interrupts:
    .quad 0
.globl disk_interrupts
disk_interrupts:
    .quad 0

# One task state segment for each CPU: the ring-0 stack, and a bitmap of zeros that permits port I/O
# in ring 3.
.balign 4096
tss:
    .set cpu, 0
    .rept MAX_CPUS
    .balign 4096
    .long 0
    .quad stacks0 + (cpu + 1) * STACK0_LEN
    .fill 0x66 - 12, 1, 0
    .word 0x68
    .fill 8192, 1, 0
    .byte 0xff
    .set cpu, cpu + 1
    .endr

# Maps the first 4 GiB one to one, in pages of 2 MiB that ring 3 may use. From 3 GiB on, where the
# devices are, the pages are uncached. Ring 3 maps the memory above 4 GiB.
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
.globl pdpt
pdpt:
    .quad page_directories + 0x0007, page_directories + 0x1007, page_directories + 0x2007, page_directories + 0x3007
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 1536
    .quad page * 0x200000 + 0x87
    .set page, page + 1
    .endr
    .rept 512
    .quad page * 0x200000 + 0x9f
    .set page, page + 1
    .endr

.section .noinit, "aw", @nobits
.balign 4096
idt:
    .skip 4096
stacks0:
    .skip MAX_CPUS * STACK0_LEN
fault_stack:
    .skip 0x8000
fault_record:
    .skip 64
.balign 4096
stacks3:
    .skip MAX_CPUS * STACK3_LEN
