import { readFile, truncate, writeFile } from 'node:fs/promises';

/**
 * The smallest machine that proves reads and writes: a boot sector that counts its boots in the
 * disk's second sector, reads the count back, says `ROUSE boots NN` on the serial port and halts.
 * It is up in half a second in software emulation.
 */
export interface BootSectorOptions {
  readonly path: string;
  /** Default 1 MiB; a multiple of 512. */
  readonly sizeBytes?: number;
}

/** Where the BIOS loads a boot sector. */
const origin = 0x7c00;
/** Where the counting sector is read to. */
const buffer = 0x7e00;
/** First serial port: its data register, and its line status register five above. */
const com1 = 0x3f8;

export async function buildBootSector(options: BootSectorOptions): Promise<void> {
  await writeFile(options.path, bootSector());
  await truncate(options.path, options.sizeBytes ?? 1024 * 1024);
}

/** How often a disk made by `buildBootSector` has booted, as it holds it itself. */
export async function bootSectorCount(path: string): Promise<number> {
  return (await readFile(path)).readUInt8(512);
}

/**
 * The sector, assembled by hand: 16-bit code with its addresses worked out from the lengths of the
 * parts before. BIOS int 13h, functions 42h and 43h, read and write by the packet at `packet`.
 */
function bootSector(): Buffer {
  const text = Buffer.from('ROUSE boots ');
  const low = (value: number) => value & 0xff;
  const high = (value: number) => (value >> 8) & 0xff;
  const word = (value: number) => [low(value), high(value)];
  // Laid out from the end of the code: the packet at +0x100, the text at +0x120.
  const packet = origin + 0x100;
  const message = origin + 0x120;
  const disk = (operation: number) => [
    ...[0xb4, operation], // mov ah, operation
    ...[0xb0, 0x00], // mov al, 0: write without verifying
    ...[0xbe, ...word(packet)], // mov si, packet
    ...[0x8a, 0x16, ...word(origin + 0x1f0)], // mov dl, [boot drive]
    ...[0xcd, 0x13], // int 0x13
  ];
  const putByte = [
    ...[0x50], // push ax
    ...[0xba, ...word(com1 + 5)], // mov dx, line status
    ...[0xec], // wait: in al, dx
    ...[0xa8, 0x20], // test al, transmitter empty
    ...[0x74, 0xfb], // jz wait
    ...[0x58], // pop ax
    ...[0xba, ...word(com1)], // mov dx, data
    ...[0xee], // out dx, al
    ...[0xc3], // ret
  ];
  const start = 3; // after the jump over putByte
  const putAt = start;
  const code: number[] = [0xeb, putByte.length + 1, 0x90, ...putByte]; // jmp, nop, putByte
  const call = () => {
    const distance = putAt - (code.length + 3);
    code.push(0xe8, ...word(distance));
  };
  code.push(0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0); // ds = es = ss = 0
  code.push(0xbc, ...word(origin)); // sp below the code
  code.push(0x88, 0x16, ...word(origin + 0x1f0)); // remember the boot drive
  code.push(...disk(0x42));
  code.push(0xfe, 0x06, ...word(buffer)); // inc byte [buffer]
  code.push(...disk(0x43));
  code.push(0xc6, 0x06, ...word(buffer), 0x00); // forget it, so that the disk must tell
  code.push(...disk(0x42));
  code.push(0xbe, ...word(message), 0xb9, ...word(text.length)); // si = text, cx = its length
  const loop = code.length;
  code.push(0xac); // lodsb
  call();
  code.push(0xe2, low(loop - (code.length + 2))); // loop
  code.push(0xa0, ...word(buffer), 0xd4, 10, 0x50, 0x88, 0xe0, 0x04, 0x30); // aam; tens to al
  call();
  code.push(0x58, 0x04, 0x30); // pop ax, units
  call();
  for (const byte of [13, 10]) {
    code.push(0xb0, byte);
    call();
  }
  code.push(0xf4, 0xeb, 0xfd); // hlt, for ever
  if (code.length > 0x100) throw new Error('the boot sector has grown into its packet');
  const sector = Buffer.alloc(512);
  sector.set(code, 0);
  // Disk address packet: its size, one sector, to 0:buffer, from sector 1 (BIOS EDD).
  sector.set([0x10, 0, 1, 0, ...word(buffer), 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], 0x100);
  sector.set(text, 0x120);
  sector.set([0x55, 0xaa], 510);
  return sector;
}
