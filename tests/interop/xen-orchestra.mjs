// Writes an XVA of raw disks with Xen Orchestra's own writer: node xen-orchestra.mjs OUT.xva DISK.raw...
import { createReadStream, createWriteStream, statSync } from 'node:fs'
import { basename } from 'node:path'
import { pipeline } from 'node:stream/promises'

import { importVm } from '@xen-orchestra/xva/importVm.mjs'

const [out, ...disks] = process.argv.slice(2)

// Stands in for the connection to a host: what would be sent to /import goes to the file.
const host = {
  task_create: async () => 'OpaqueRef:task',
  putResource: async pack => {
    await pipeline(pack, createWriteStream(out))
    return 'OpaqueRef:0'
  },
}

const vm = {
  name_label: 'from Xen Orchestra',
  memory: 1 << 30,
  nCpus: 1,
  firmware: 'bios',
  networks: [],
  vdis: disks.map(disk => ({ name_label: basename(disk), virtual_size: statSync(disk).size })),
  vhds: disks.map(disk => ({
    footer: { currentSize: statSync(disk).size },
    rawContent: async () => createReadStream(disk),
  })),
}
const sr = { $ref: 'OpaqueRef:sr', uuid: '6f0a3b4e-0000-4000-8000-000000000001', content_type: 'user', type: 'ext' }
await importVm(vm, host, sr)
