/**
 * Names of a clone's disk files: `vda` -> `vda.vmdk` and `vda-flat.vmdk`. vSphere calls its disks
 * `scsi0:0`, and a colon separates a datastore from a path in ESXi's own tools and a device from a
 * path in others: what a datastore's file names may not hold becomes a dash.
 */
export function diskFileNames(disks: readonly string[]): string[] {
  const taken = new Set<string>();
  return disks.map((disk) => {
    const plain = disk.replaceAll(unsafe, '-');
    let name = plain;
    for (let again = 1; taken.has(name); again += 1) name = `${plain}_${again}`;
    taken.add(name);
    return name;
  });
}

/** What neither VMFS's tools nor a datastore browser take in a name, and control characters. */
// oxlint-disable-next-line no-control-regex -- control characters are what is replaced
const unsafe = /[\u0000-\u001f\u007f"*:<>?\\|]/gu;

/** The raw disk beside the descriptor. */
export function flatName(file: string): string {
  return `${file}-flat.vmdk`;
}
