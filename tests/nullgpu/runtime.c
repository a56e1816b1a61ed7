/* The null GPU's runtime and cuBLAS: every call succeeds, does nothing and is counted by its name. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include "driver_types.h"
/* Counters: each call by its name. */
#define MAXC 1024
static const char* names[MAXC]; static long counts[MAXC]; static int used=0;
  static pthread_mutex_t mu=PTHREAD_MUTEX_INITIALIZER;
int nullgpu_register(const char* n){ pthread_mutex_lock(&mu); int i=used++; names[i]=n; pthread_mutex_unlock(&mu);
  return i; }
#define COUNT(n) do{ static int id=-1; if(id<0) id=nullgpu_register(n); __sync_fetch_and_add(&counts[id],1);}while(0)
void nullgpu_count(int* id, const char* n){ if(*id<0) *id=nullgpu_register(n); __sync_fetch_and_add(&counts[*id],1); }
void nullgpu_reset_launches(void);
void nullgpu_reset(void){ memset(counts,0,sizeof counts); nullgpu_reset_launches(); }
int nullgpu_dump(char* b, int size){ int o=0; for(int i=0;i<used;
  i++) if(counts[i]) o+=snprintf(b+o,size-o,"%s %ld\n",names[i],counts[i]); return o; }
long nullgpu_bytes=0, nullgpu_peak=0;
static int cur_trace=0; void nullgpu_trace(int on){cur_trace=on;}
/* arena: device memory */
static char* arena=0; static size_t ARENA=(size_t)1<<42; static size_t brk_=0;
static char* parena=0; static size_t pbrk=0; static size_t PARENA=(size_t)1<<38;
static void init_arena(void){ pthread_mutex_lock(&mu); if(!arena){
  arena=mmap((void*)0x500000000000ULL,ARENA,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0);
  parena=mmap((void*)0x5f0000000000ULL,PARENA,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0);}
  pthread_mutex_unlock(&mu);}
/* What the host reads of the device: what is there, or zeros for a flag, a norm (4 bytes) and a step's sums (five
   float64, and three more for each of up to four ranks that tell their times), so that no garbage decides anything:
   one of the sums asks for a stop. What ZeRO-3 compares between ranks, int64, is real. */
static int decides(size_t n){ return n<=4||(n>=40&&n<=40+24*4&&(n-40)%24==0); }
int nullgpu_real(const void*); static int zeros=0; void nullgpu_zeros(int on){zeros=on;}
static int isdev(const void*p){ return arena && (char*)p>=arena && (char*)p<arena+ARENA; }
static int ispin(const void*p){ return parena && (char*)p>=parena && (char*)p<parena+PARENA; }
static __thread int device=0;
static int ndev(void){ char*e=getenv("NULLGPU_COUNT"); return e?atoi(e):1; }
static int cap(void){ char*e=getenv("NULLGPU_CAP"); return e?atoi(e):90; }
typedef int E;
/* How far the host is ahead: launches since it last waited. An event recorded after few of them is taken to have
   passed by the time that somebody asks; one behind a queue has not, until the host has waited. */
#define NEAR 64
static long queued=0, waited=0; long nullgpu_launches=0;
void nullgpu_launched(void){ __sync_fetch_and_add(&queued,1); __sync_fetch_and_add(&nullgpu_launches,1); }
static void waits(void){ __sync_fetch_and_add(&waited,1); queued=0; }
#define LAUNCH(n) do{ COUNT("LAUNCH " n); nullgpu_launched(); }while(0)
typedef struct {long behind, waited;} event;
E cudaGetDeviceCount(int*n){ *n=ndev(); return 0;}
E cudaGetDevice(int*d){ *d=device; return 0;}
E cudaSetDevice(int d){ COUNT("cudaSetDevice"); device=d; return 0;}
E cudaDriverGetVersion(int*v){*v=13000;return 0;}
E cudaRuntimeGetVersion(int*v){*v=13000;return 0;}
E cudaGetLastError(void){return 0;}
E cudaPeekAtLastError(void){return 0;}
const char* cudaGetErrorString(E e){return "null GPU";}
const char* cudaGetErrorName(E e){return "fake";}
static size_t sharedmax(void){int c=cap(); return (c==80?163:c==90||c==100?227:99)*1024;}
E cudaGetDeviceProperties(struct cudaDeviceProp*p,int d){ memset(p,0,sizeof*p);
  strcpy(p->name, cap()==90?"NVIDIA H100 80GB HBM3":cap()==80?"NVIDIA A100-SXM4-80GB":"NVIDIA Fake");
  p->totalGlobalMem=(size_t)80<<30; p->sharedMemPerBlock=48*1024; p->regsPerBlock=65536;p->warpSize=32;
  p->maxThreadsPerBlock=1024;p->maxThreadsDim[0]=1024;p->maxThreadsDim[1]=1024;p->maxThreadsDim[2]=64;
  p->maxGridSize[0]=2147483647;p->maxGridSize[1]=65535;p->maxGridSize[2]=65535;p->major=cap()/10;p->minor=cap()%10;
  p->multiProcessorCount=cap()==80?108:132;p->unifiedAddressing=1;p->l2CacheSize=50<<20;
  p->maxThreadsPerMultiProcessor=2048;p->sharedMemPerMultiprocessor=sharedmax()+1024;p->regsPerMultiprocessor=65536;
  p->sharedMemPerBlockOptin=sharedmax();p->concurrentKernels=1;p->maxBlocksPerMultiProcessor=32;
  p->textureAlignment=512;p->memoryBusWidth=5120;p->streamPrioritiesSupported=1;p->asyncEngineCount=3;
  p->canMapHostMemory=1;p->clusterLaunch=1;p->cooperativeLaunch=1; return 0;}
E cudaDeviceGetAttribute(int*v,int a,int d){ struct cudaDeviceProp p; cudaGetDeviceProperties(&p,d); switch(a){
  case 1:*v=1024;break;case 8:*v=48*1024;break;case 10:*v=32;break;case 12:*v=65536;break;case 13:*v=1755000;break;
  case 16:*v=p.multiProcessorCount;break;case 38:*v=p.l2CacheSize;break;case 39:*v=2048;break;case 75:*v=p.major;
  break;case 76:*v=p.minor;break;case 81:*v=p.sharedMemPerMultiprocessor;break;case 82:*v=65536;break;
  case 97:*v=p.sharedMemPerBlockOptin;break;case 36:*v=2619000;break;case 37:*v=5120;break;case 111:*v=1024;break;
  default:*v=1;} return 0;}
E cudaDeviceGetPCIBusId(char*b,int n,int d){ snprintf(b,n,"0000:%02x:00.0",d+1); return 0;}
E cudaDeviceGetStreamPriorityRange(int*a,int*b){if(a)*a=0;if(b)*b=-5;return 0;}
static long handle=0x1000; static void* H(void){ return (void*)__sync_add_and_fetch(&handle,16);} 
E cudaStreamCreateWithPriority(void**s,unsigned f,int p){*s=H();return 0;}
E cudaStreamCreateWithFlags(void**s,unsigned f){*s=H();return 0;}
E cudaStreamCreate(void**s){*s=H();return 0;}
E cudaStreamGetPriority(void*s,int*p){*p=0;return 0;}
E cudaEventCreateWithFlags(void**e,unsigned f){*e=calloc(1,sizeof(event));return 0;}
E cudaEventCreate(void**e){return cudaEventCreateWithFlags(e,0);}
E cudaEventDestroy(void*e){return 0;} /* kept: threads of PyTorch may still ask for it */
E cudaEventRecord(event*e,void*s){e->behind=queued;e->waited=waited;return 0;}
E cudaEventRecordWithFlags(event*e,void*s,unsigned f){return cudaEventRecord(e,s);}
static int passed(event*e){return e->behind<=NEAR||waited>e->waited;}
E cudaEventQuery(event*e){return passed(e)?0:600;} /* cudaErrorNotReady */
E cudaEventElapsedTime(float*t,void*a,void*b){*t=1.f;return 0;}
E cudaStreamIsCapturing(void*s,int*st){*st=0;return 0;}
E cudaStreamGetCaptureInfo(void*s,int*st,unsigned long long*id,void*a,void*b,void*c,size_t*n){ if(st)*st=0;
  if(id)*id=0; if(n)*n=0; return 0;}
E cudaThreadExchangeStreamCaptureMode(int*m){return 0;}
static void bt(const char*n);
E cudaStreamSynchronize(void*s){COUNT("cudaStreamSynchronize"); bt("cudaStreamSynchronize"); waits(); return 0;}
E cudaDeviceSynchronize(void){COUNT("cudaDeviceSynchronize"); bt("cudaDeviceSynchronize"); waits(); return 0;}
E cudaEventSynchronize(event*e){ if(!passed(e)){ COUNT("cudaEventSynchronize"); bt("cudaEventSynchronize"); waits(); }
   return 0;}
/* simple allocator with free list by size */
typedef struct B{size_t size; char*p; struct B*next;}B; static B* live=0; static B* freeb=0;
E cudaMalloc(void**p,size_t n){ COUNT("cudaMalloc"); init_arena(); if(!n)n=1; n=(n+511)/512*512;
  pthread_mutex_lock(&mu); B**q=&freeb; while(*q && (*q)->size!=n) q=&(*q)->next; B*b; if(*q){b=*q;*q=b->next;} else {
  b=malloc(sizeof(B)); b->size=n; b->p=arena+brk_; brk_+=n;} b->next=live; live=b; *p=b->p; nullgpu_bytes+=n;
  if(nullgpu_bytes>nullgpu_peak)nullgpu_peak=nullgpu_bytes; pthread_mutex_unlock(&mu); return 0;}
E cudaFree(void*p){ if(!p) return 0; COUNT("cudaFree"); pthread_mutex_lock(&mu); B**q=&live;
  while(*q && (*q)->p!=p) q=&(*q)->next; if(*q){B*b=*q;*q=b->next;b->next=freeb;freeb=b;nullgpu_bytes-=b->size;
  madvise(b->p,b->size,MADV_DONTNEED);} pthread_mutex_unlock(&mu); return 0;}
E cudaMallocAsync(void**p,size_t n,void*s){return cudaMalloc(p,n);}
E cudaFreeAsync(void*p,void*s){return cudaFree(p);}
E cudaMemGetInfo(size_t*f,size_t*t){*t=(size_t)80<<30;*f=*t-nullgpu_bytes;return 0;}
E cudaHostAlloc(void**p,size_t n,unsigned f){COUNT("cudaHostAlloc"); init_arena(); n=(n+4095)/4096*4096;
  pthread_mutex_lock(&mu); *p=parena+pbrk; pbrk+=n; pthread_mutex_unlock(&mu); return 0;}
E cudaFreeHost(void*p){return 0;}
E cudaPointerGetAttributes(struct cudaPointerAttributes*a,const void*p){ memset(a,0,sizeof*a); if(isdev(p)){a->type=2;
  a->devicePointer=(void*)p;} else if(ispin(p)){a->type=1;a->hostPointer=(void*)p;a->devicePointer=(void*)p;}
  else a->type=0; return 0;}
static E copy(void*d,const void*s,size_t n,int k,int async){ 
  int sd=isdev(s),dd=isdev(d); 
  if(sd&&dd){ COUNT("memcpy D2D"); if(n<=(1<<20)) memcpy(d,s,n); return 0;}
  if(sd){ if(ispin(d)&&async) COUNT("memcpy D2H pinned"); else { COUNT("memcpy D2H (waits)"); bt("D2H"); }
  if(zeros&&decides(n)&&!nullgpu_real(s)) memset(d,0,n); else memcpy(d,s,n); return 0;}
  if(dd){ if(ispin(s)&&async) COUNT("memcpy H2D pinned"); else { COUNT("memcpy H2D pageable (waits)");
  if(n<(1<<20)) bt("H2D pageable"); } if(n<=(1<<20)) memcpy(d,s,n); return 0;}
  memcpy(d,s,n); return 0; }
E cudaMemcpy(void*d,const void*s,size_t n,int k){return copy(d,s,n,k,0);}
E cudaMemcpyAsync(void*d,const void*s,size_t n,int k,void*st){return copy(d,s,n,k,1);}
E cudaMemcpyPeerAsync(void*d,int a,const void*s,int b,size_t n,void*st){COUNT("memcpy peer");return 0;}
E cudaMemset(void*d,int v,size_t n){COUNT("memset"); if(n<=(1<<16))memset(d,v,n);return 0;}
E cudaMemsetAsync(void*d,int v,size_t n,void*s){COUNT("memset"); if(n<=(1<<16))memset(d,v,n);return 0;}
E cudaFuncGetAttributes(struct cudaFuncAttributes*a,const void*f){memset(a,0,sizeof*a);a->maxThreadsPerBlock=1024;
  a->numRegs=64;a->binaryVersion=90;a->ptxVersion=90;return 0;}
E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,const void*f,int b,size_t s,unsigned fl){*n=2;return 0;
  }
E cudaGetSymbolAddress(void**p,const void*s){return cudaMalloc(p,1<<16);}
E cudaDeviceCanAccessPeer(int*c,int a,int b){*c=1;return 0;}
/* launches */
static __thread struct {unsigned g[6]; size_t sh; void*st;} conf;
void** __cudaRegisterFatBinary(void*f){return (void**)H();}
void __cudaRegisterFatBinaryEnd(void**h){}
void __cudaUnregisterFatBinary(void**h){}
void nullgpu_register_kernel(const void*,const char*); void nullgpu_launch(const void*);
void __cudaRegisterFunction(void**h,const char*a,char*b,const char*c,int d,void*e,void*f,void*g,void*i,int*j){
  nullgpu_register_kernel(a,c); }
void __cudaRegisterVar(void**a,char*b,char*c,const char*d,int e,size_t f,int g,int h){}
char __cudaInitModule(void**f){return 1;}
typedef struct {unsigned x,y,z;} d3;
unsigned __cudaPushCallConfiguration(d3 g,d3 b,size_t sh,void*st){conf.g[0]=g.x;conf.g[1]=g.y;conf.g[2]=g.z;
  conf.g[3]=b.x;conf.g[4]=b.y;conf.g[5]=b.z;conf.sh=sh;conf.st=st;return 0;}
E __cudaPopCallConfiguration(d3*g,d3*b,size_t*sh,void*st){g->x=conf.g[0];g->y=conf.g[1];g->z=conf.g[2];b->x=conf.g[3];
  b->y=conf.g[4];b->z=conf.g[5];*sh=conf.sh;*(void**)st=conf.st;return 0;}
E __cudaGetKernel(void**k,const void*f){*k=(void*)f;return 0;}
E __cudaLaunchKernel(void*k,d3 g,d3 b,void**a,size_t sh,void*st){nullgpu_launch(k);return 0;}
E cudaLaunchKernel(const void*k,d3 g,d3 b,void**a,size_t sh,void*st){nullgpu_launch(k);return 0;}
E cudaLaunchKernelExC(void*c,const void*k,void**a){nullgpu_launch(k);return 0;}
/* driver through entry points */
extern void* nullgpu_driver(const char*n);
E cudaGetDriverEntryPointByVersion(const char*n,void**f,unsigned v,unsigned long long fl,int*q){*f=nullgpu_driver(n);
  if(q)*q=*f?0:1; return 0;}
E cudaGetDriverEntryPoint(const char*n,void**f,unsigned long long fl,int*q){*f=nullgpu_driver(n); if(q)*q=*f?0:1;
  return 0;}
/* cublas */
E cublasCreate_v2(void**h){*h=H();return 0;}
E cublasGetMathMode(void*h,int*m){*m=0;return 0;}
E cublasGetPointerMode_v2(void*h,int*m){*m=0;return 0;}
size_t cublasLtGetVersion(void){return 130000;}
#define GEMM(n) E n(){LAUNCH(#n);return 0;}
GEMM(cublasGemmEx) GEMM(cublasGemmStridedBatchedEx) GEMM(cublasSgemm_v2) GEMM(cublasSgemmStridedBatched) GEMM(cublasLtMatmul) GEMM(cublasSgemmEx) GEMM(cublasSgemv_v2) GEMM(cublasSdot_v2)
E cublasLtMatmulDescCreate(void**h,int c,int t){*h=calloc(1,256);return 0;}
E cublasLtMatmulDescDestroy(void*h){free(h);return 0;}
E cublasLtMatrixLayoutCreate(void**h,int t,uint64_t r,uint64_t c,int64_t l){*h=calloc(1,128);return 0;}
E cublasLtMatrixLayoutDestroy(void*h){free(h);return 0;}
E cublasLtMatmulPreferenceCreate(void**h){*h=calloc(1,128);return 0;}
E cublasLtMatmulPreferenceDestroy(void*h){free(h);return 0;}
struct heur{uint64_t algo[8];size_t ws;int state;float waves;int res[4];};
E cublasLtMatmulAlgoGetHeuristic(void*h,void*d,void*a,void*b,void*c,void*e,void*p,int n,struct heur*r,int*got){
  COUNT("cublasLtMatmulAlgoGetHeuristic"); memset(r,0,sizeof*r);*got=1;return 0;}
/* backtrace into python: print via callback */
static void (*cb)(const char*)=0; void nullgpu_callback(void(*f)(const char*)){cb=f;}
static void bt(const char*n){ if(cb&&cur_trace) cb(n);}
size_t cudnnGetVersion(void){return 80900;}
